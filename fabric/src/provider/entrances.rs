//! Where applications of this process enter the fabric.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use keel_certs::ServiceId;
use tokio::time::Instant;

use crate::quic::HostPort;

/// The addresses at which this process takes connections into the fabric, with the port of the service that each leads to. Clones
/// share them.
///
/// A backend that is an entrance of its own service would let each connection come back as the next one, until no file is left.
#[derive(Debug, Clone, Default)]
pub struct Entrances {
    all: Arc<RwLock<HashMap<SocketAddr, (ServiceId, u16)>>>,
    /// When the log said last that a backend is one.
    said: Arc<Mutex<Option<Instant>>>,
}

/// How often the log says so: each connection to such a service is refused for it.
const REPEAT: Duration = Duration::from_secs(60);

impl Entrances {
    /// Replaces them all.
    pub fn replace(&self, all: HashMap<SocketAddr, (ServiceId, u16)>) {
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// The addresses of a backend of this service's port that do not lead back to it.
    ///
    /// # Errors
    /// None is found, or all of them do.
    pub(super) async fn outside(
        &self,
        backend: &HostPort,
        (service, port): (&ServiceId, u16),
    ) -> io::Result<Vec<SocketAddr>> {
        let mut addrs = backend.resolve().await?;
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let found = addrs.len();
        addrs.retain(|addr| {
            all.get(addr)
                .is_none_or(|(to, at)| to != service || *at != port)
        });
        if !addrs.is_empty() || found == 0 {
            return Ok(addrs);
        }
        let why = "this process maps the same service there, so each connection would come back as the next one";
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= REPEAT) {
            *said = Some(Instant::now());
            tracing::warn!(%service, port, %backend, "the backend cannot be used: {why}");
        }
        Err(io::Error::other(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_backend_is_no_entrance_of_its_own_service() {
        let (at, db): (SocketAddr, ServiceId) = (
            "127.0.93.1:3306".parse().unwrap(),
            "db.default".parse().unwrap(),
        );
        let entrances = Entrances::default();
        let backend = HostPort::from(at);
        let outside = |service: ServiceId, port| {
            let (entrances, backend) = (entrances.clone(), backend.clone());
            async move { entrances.outside(&backend, (&service, port)).await }
        };
        assert_eq!(outside(db.clone(), 3306).await.unwrap(), [at]);
        entrances.replace(HashMap::from([(at, (db.clone(), 3306))]));
        let error = outside(db.clone(), 3306).await.unwrap_err().to_string();
        assert!(error.contains("come back"), "{error}");
        // Under another name it is handed on.
        assert_eq!(outside(db, 3307).await.unwrap(), [at]);
        assert_eq!(
            outside("other.default".parse().unwrap(), 3306)
                .await
                .unwrap(),
            [at]
        );
    }
}
