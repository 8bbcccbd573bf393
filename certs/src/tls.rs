//! rustls settings that are the same everywhere: TLS 1.3 only, no session tickets, no early data.

use std::sync::{Arc, LazyLock};

use rustls::{
    ClientConfig, ServerConfig,
    client::{ResolvesClientCert, Resumption, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs as aws},
    server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
};

/// Who may connect to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Also those without a certificate: the APIServer's port, where they may only enrol. The chain that the server sends
    /// then carries the root too, for joiners who know nothing but its hash.
    Optional,
    /// Only those with a certificate of this trust domain.
    Required,
}

/// The cryptography of every connection: TLS 1.3 suites of aws-lc-rs, AES-128-GCM first; key exchange X25519MLKEM768 if the
/// other side has it, else X25519 or a NIST curve.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                aws::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                aws::kx_group::X25519MLKEM768,
                aws::kx_group::X25519,
                aws::kx_group::SECP256R1,
                aws::kx_group::SECP384R1,
            ],
            ..aws::default_provider()
        })
    });
    PROVIDER.clone()
}

/// What a client presents.
pub(crate) enum Present {
    Certificate(Arc<dyn ResolvesClientCert>),
    Nothing,
}

pub(crate) fn server(
    alpn: &[&[u8]],
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites and key exchanges for them")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.ignore_client_order = true;
    // Resumption would skip the check of a certificate that was replaced or revoked since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

pub(crate) fn client(
    alpn: &[&[u8]],
    verifier: Arc<dyn ServerCertVerifier>,
    present: Present,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites and key exchanges for them")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match present {
        Present::Certificate(resolver) => builder.with_client_cert_resolver(resolver),
        Present::Nothing => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// The parts of rustls's two verifier traits that never differ: signatures, by the provider's algorithms.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &$crate::tls::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::tls::provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}
pub(crate) use signatures;
