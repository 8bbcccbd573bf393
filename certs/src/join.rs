//! Trusting a server on nothing but the hash of its root's key, for the one connection that joins a fabric.

use std::sync::Arc;

use rustls::{
    ClientConfig,
    client::danger::{ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::{
    authority::RootPin,
    tls::{self, Present, signatures},
    verify::{self, VerifyError},
};

/// Settings of a client that has a join token and nothing else. The handshake succeeds only if the server presents a root
/// whose key hashes to `pin`, its chain leads to *that* root, it is a node, and its certificate is valid for the host that
/// was dialled. So nothing, the token's secret least of all, is sent to anybody else.
#[must_use]
pub fn join_client_config(pin: &RootPin, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    tls::client(alpn, Arc::new(Pinned(*pin)), Present::Nothing)
}

#[derive(Debug)]
struct Pinned(RootPin);

impl Pinned {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        presented: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        let is_pinned =
            |cert: &&CertificateDer<'_>| RootPin::of(cert).is_ok_and(|pin| pin == self.0);
        let root = presented.iter().find(is_pinned).ok_or(VerifyError::Pin)?;
        let anchors = [verify::anchor(root)?];
        let identity = verify::verify(&anchors, leaf, presented, now, KeyUsage::server_auth())?;
        if !identity.subject.is_node() {
            return Err(VerifyError::NotANode(identity));
        }
        EndEntityCert::try_from(leaf)
            .and_then(|leaf| leaf.verify_is_valid_for_subject_name(host))
            .map_err(|_| VerifyError::Host(host.to_str().into_owned()))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, server_name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}
