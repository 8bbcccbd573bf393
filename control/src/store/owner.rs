//! Whose a shared database is: one trust domain's. Two that wrote to the same one would show each other Routers that nobody can reach.

use futures_util::FutureExt;
use keel_certs::TrustDomain;

use super::{Store, StoreError};

/// Why a node may not use the store.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is another trust domain's.
    #[error(
        "the store {store} belongs to trust domain {theirs}, and this node to {ours}: give it a database of its own, or an empty \
         --data-dir and --join with a token of {theirs}"
    )]
    Another {
        /// URL of the store.
        store: String,
        /// The trust domain that it belongs to.
        theirs: String,
        /// The node's own.
        ours: TrustDomain,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// The trust domain that the store belonged to when it was opened; `None` if nobody has claimed it, and for a file, which lies
    /// beside the identity of its node.
    #[must_use]
    pub fn trust_domain(&self) -> Option<&str> {
        self.inner.trust_domain.as_deref()
    }

    /// Makes the store this trust domain's, if it is nobody's. A file is always whose folder it is in.
    ///
    /// # Errors
    /// A [`ClaimError`]; the store belongs to whom it did.
    pub async fn claim(&self, domain: &TrustDomain) -> Result<(), ClaimError> {
        let ours = domain.to_string();
        let theirs = self
            .transact("claim it", move |database| {
                async move { database.claim(&ours).await }.boxed()
            })
            .await?;
        if theirs == domain.as_str() {
            return Ok(());
        }
        Err(ClaimError::Another {
            store: self.place().to_owned(),
            theirs,
            ours: domain.clone(),
        })
    }
}
