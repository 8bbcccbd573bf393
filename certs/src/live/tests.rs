use std::net::IpAddr;

use rustls::ClientConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::{
    authority::RootPin,
    fixture::Fabric,
    issue::LEAF_LIFE,
    join_client_config,
    name::{Namespace, PodName},
    peer_identity,
};

const ALPN: &[&[u8]] = &[b"test"];

type Ends = (
    client::TlsStream<DuplexStream>,
    server::TlsStream<DuplexStream>,
);

/// A handshake and one byte each way: in TLS 1.3 a client learns only by reading that its certificate was refused.
async fn connect(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    host: &str,
) -> Result<Ends, String> {
    let (near, far) = duplex(64 * 1024);
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let (client, server) = tokio::join!(
        async {
            let mut stream = TlsConnector::from(client).connect(host, near).await?;
            stream.write_all(b"c").await?;
            stream.read_exact(&mut [0]).await?;
            std::io::Result::Ok(stream)
        },
        async {
            let mut stream = TlsAcceptor::from(server).accept(far).await?;
            stream.read_exact(&mut [0]).await?;
            stream.write_all(b"s").await?;
            stream.flush().await?;
            std::io::Result::Ok(stream)
        }
    );
    match (client, server) {
        (Ok(client), Ok(server)) => Ok((client, server)),
        (client, server) => Err(format!(
            "client: {:?}; server: {:?}",
            client.err(),
            server.err()
        )),
    }
}

fn leaf(connection: &ClientConnection) -> CertificateDer<'static> {
    connection.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

fn expect(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

#[tokio::test]
async fn both_sides_see_who_the_other_is() {
    let fabric = Fabric::new();
    let (router, pod) = (
        fabric.node("edge-a"),
        fabric.pod("edge-b", "default", "web-0"),
    );
    let config = pod.client_config(ALPN, &expect("edge-a"));
    let (client, server) = connect(
        config,
        router.server_config(ALPN, Clients::Required),
        "ignored.example",
    )
    .await
    .unwrap();
    let seen = peer_identity(server.get_ref().1.peer_certificates().unwrap()).unwrap();
    assert_eq!(seen.identity, pod.identity());
    assert_eq!(
        peer_identity(&[leaf(client.get_ref().1)]).unwrap().identity,
        router.identity()
    );
    let connection = client.get_ref().1;
    assert_eq!(
        connection.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(
        connection.negotiated_key_exchange_group().unwrap().name(),
        rustls::NamedGroup::X25519MLKEM768
    );
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[tokio::test]
async fn a_dialer_takes_only_the_node_it_expects() {
    let fabric = Fabric::new();
    let client = fabric.node("edge-c").client_config(ALPN, &expect("edge-a"));
    for wrong in [
        fabric.node("edge-b"),
        fabric.pod("edge-a", "default", "evil"),
        fabric.node_admin("edge-a", "ann"),
        fabric.fabric_admin("ann"),
        Fabric::new().node("edge-a"),
        Fabric::named("other").node("edge-a"),
    ] {
        let server = wrong.server_config(ALPN, Clients::Required);
        let error = connect(client.clone(), server, "localhost")
            .await
            .unwrap_err();
        assert!(
            error.contains("expected /node/edge-a") || error.contains("root of this trust domain"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn servers_refuse_strangers_and_only_optional_ones_take_nobody() {
    let fabric = Fabric::new();
    let server = fabric.node("edge-a");
    let stranger = Fabric::new().node("edge-b");
    // The stranger trusts our root, so that only the server can refuse.
    let stranger =
        Current::new(stranger.key(), stranger.chain(), stranger.roots()).map(|mut current| {
            current.anchors = vec![verify::anchor(fabric.root().certificate()).unwrap()];
            current.identity.trust_domain = fabric.root().trust_domain().clone();
            LiveIdentity(Arc::new(Shared {
                current: ArcSwap::from_pointee(current),
                keep: Mutex::default(),
            }))
        });
    let config = stranger.unwrap().client_config(ALPN, &expect("edge-a"));
    for clients in [Clients::Required, Clients::Optional] {
        let error = connect(
            config.clone(),
            server.server_config(ALPN, clients),
            "localhost",
        )
        .await
        .unwrap_err();
        assert!(error.contains("does not lead to a root"), "{error}");
    }
    let nobody = join_client_config(&fabric.pin(), ALPN);
    assert!(
        connect(
            nobody.clone(),
            server.server_config(ALPN, Clients::Required),
            "localhost"
        )
        .await
        .is_err()
    );
    let (_, accepted) = connect(
        nobody,
        server.server_config(ALPN, Clients::Optional),
        "localhost",
    )
    .await
    .unwrap();
    assert!(accepted.get_ref().1.peer_certificates().is_none());
}

#[tokio::test]
async fn joiners_believe_the_pinned_root_and_the_host_name() {
    let fabric = Fabric::new();
    let server = fabric.node("edge-a").server_config(ALPN, Clients::Optional);
    for host in ["localhost", "127.0.0.1"] {
        let config = join_client_config(&fabric.pin(), ALPN);
        connect(config, server.clone(), host).await.unwrap();
    }
    let cases = [
        (
            RootPin([0; 32]),
            "localhost",
            "does not present the root key",
        ),
        (
            Fabric::new().pin(),
            "localhost",
            "does not present the root key",
        ),
        (
            fabric.pin(),
            "evil.example",
            "not valid for the host evil.example",
        ),
        (
            fabric.pin(),
            "192.0.2.77",
            "not valid for the host 192.0.2.77",
        ),
    ];
    for (pin, host, text) in cases {
        let error = connect(join_client_config(&pin, ALPN), server.clone(), host)
            .await
            .unwrap_err();
        assert!(error.contains(text), "{error}");
    }
    // A pod of the fabric cannot play the server, and the root in the chain does not help a chain of another root.
    let pod = fabric
        .pod("edge-a", "default", "evil")
        .server_config(ALPN, Clients::Optional);
    let error = connect(join_client_config(&fabric.pin(), ALPN), pod, "localhost")
        .await
        .unwrap_err();
    assert!(error.contains("not a node"), "{error}");
    let other = Fabric::new().node("edge-a");
    let mut chain = other.chain().certs;
    chain.push(fabric.root().certificate().clone());
    let signer = provider()
        .key_provider
        .load_private_key(other.key().rustls_der())
        .unwrap();
    let forged = Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(
        Arc::new(CertifiedKey::new(chain, signer)),
    ));
    let forged = tls::server(
        ALPN,
        rustls::server::WebPkiClientVerifier::no_client_auth(),
        forged,
    );
    assert!(
        connect(join_client_config(&fabric.pin(), ALPN), forged, "localhost")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_refused_pin_sends_no_application_byte() {
    let fabric = Fabric::new();
    let (near, mut far) = duplex(64 * 1024);
    let server = fabric.node("edge-a").server_config(ALPN, Clients::Optional);
    let mut server = rustls::ServerConnection::new(server).unwrap();
    let config = join_client_config(&RootPin([1; 32]), ALPN);
    let client = async {
        let connected = TlsConnector::from(config)
            .connect(ServerName::try_from("localhost").unwrap(), near)
            .await;
        assert!(connected.is_err(), "the secret could be written now");
    };
    let observe = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = far.read(&mut buffer).await.unwrap();
            if count == 0 {
                break;
            }
            server.read_tls(&mut &buffer[..count]).unwrap();
            // The alert of the refusing client ends the handshake with an error.
            let state = server.process_new_packets();
            assert!(state.map_or(0, |state| state.plaintext_bytes_to_read()) == 0);
            let mut answer = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut answer).unwrap();
            }
            if far.write_all(&answer).await.is_err() {
                break;
            }
        }
        assert!(server.is_handshaking());
    };
    tokio::join!(client, observe);
}

#[tokio::test]
async fn a_replacement_is_seen_by_new_handshakes_and_ends_no_connection() {
    let fabric = Fabric::new();
    let (router, pod) = (
        fabric.node("edge-a"),
        fabric.pod("edge-a", "default", "db-0"),
    );
    let (server, client) = (
        router.server_config(ALPN, Clients::Required),
        pod.client_config(ALPN, &expect("edge-a")),
    );
    let (mut near, mut far) = connect(client.clone(), server.clone(), "localhost")
        .await
        .unwrap();

    let old = (router.chain(), pod.chain());
    let authority = fabric.node_authority("edge-a");
    let key = KeyPair::generate().unwrap();
    let chain = authority
        .sign_node(&key.csr().unwrap(), &crate::Hosts::loopback(), LEAF_LIFE)
        .unwrap();
    router.replace(key, chain).unwrap();
    let key = KeyPair::generate().unwrap();
    let (namespace, name) = (
        Namespace::default_namespace(),
        PodName::new("db-0").unwrap(),
    );
    let chain = authority
        .sign_pod(&key.csr().unwrap(), &namespace, &name, LEAF_LIFE)
        .unwrap();
    pod.replace(key, chain).unwrap();

    near.write_all(b"still").await.unwrap();
    near.flush().await.unwrap();
    let mut still = [0; 5];
    far.read_exact(&mut still).await.unwrap();
    assert_eq!(&still, b"still");

    let (near, far) = connect(client, server, "localhost").await.unwrap();
    assert_ne!(leaf(near.get_ref().1), old.0.certs[0]);
    assert_eq!(leaf(near.get_ref().1), router.chain().certs[0]);
    assert_eq!(
        far.get_ref().1.peer_certificates().unwrap()[0],
        pod.chain().certs[0]
    );
}

#[test]
fn a_replacement_of_somebody_else_or_with_another_key_is_refused() {
    let fabric = Fabric::new();
    let (live, other) = (fabric.node("edge-a"), fabric.node("edge-b"));
    let before = live.chain();
    assert!(matches!(
        live.replace(other.key(), other.chain()),
        Err(LiveError::Other { .. })
    ));
    let mismatch = live.replace(other.key(), before.clone());
    assert!(matches!(mismatch, Err(LiveError::KeyMismatch(_))));
    let foreign = Fabric::new().node("edge-a");
    assert!(matches!(
        live.replace(foreign.key(), foreign.chain()),
        Err(LiveError::Verify(_))
    ));
    let bundles = [foreign.roots(), [live.roots(), foreign.roots()].concat()];
    for roots in bundles {
        assert!(matches!(
            live.replace_all(foreign.key(), foreign.chain(), roots),
            Err(LiveError::Verify(_))
        ));
    }
    assert_eq!(live.roots(), fabric.roots());
    assert_eq!(live.chain(), before);
}

#[test]
fn a_kept_identity_survives_a_restart_and_a_crash_while_writing() {
    let fabric = Fabric::new();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("identity");
    let live = fabric.pod("edge-a", "default", "db-0");
    live.keep_in(&dir).unwrap();
    let old_key = std::fs::read(dir.join("tls.key")).unwrap();

    let renewed = fabric.pod("edge-a", "default", "db-0");
    live.replace(renewed.key(), renewed.chain()).unwrap();
    assert_eq!(LiveIdentity::load(&dir).unwrap().chain(), renewed.chain());

    // As if the process had ended after writing tls.crt.
    std::fs::rename(dir.join("tls.key"), dir.join(NEXT_KEY)).unwrap();
    std::fs::write(dir.join("tls.key"), old_key).unwrap();
    assert_eq!(LiveIdentity::load(&dir).unwrap().chain(), renewed.chain());

    // As if it had ended there the first time, and in the middle of another file.
    std::fs::rename(dir.join("tls.key"), dir.join("gone")).unwrap();
    std::fs::write(dir.join("tls.key.0123abcd.new"), "left over").unwrap();
    let again = LiveIdentity::load(&dir).unwrap();
    assert_eq!(again.chain(), renewed.chain());
    again.keep_in(&dir).unwrap();
    assert!(dir.join("tls.key").exists() && !dir.join("tls.key.0123abcd.new").exists());
    std::fs::remove_file(dir.join("tls.key")).unwrap();
    let error = LiveIdentity::load(&dir).unwrap_err().to_string();
    assert!(error.contains("tls.key"), "{error}");

    std::fs::write(dir.join("tls.crt"), "garbage").unwrap();
    assert!(matches!(
        LiveIdentity::load(&dir),
        Err(LiveError::Chain(ChainError::Empty))
    ));
    std::fs::remove_file(dir.join("tls.crt")).unwrap();
    assert!(
        LiveIdentity::load(&dir)
            .unwrap_err()
            .to_string()
            .contains("tls.crt")
    );
}

#[test]
fn stock_clients_are_held_back_by_name_constraints() {
    let fabric = Fabric::new();
    let authority = fabric.node_authority("edge-a");
    let mut hosts = crate::Hosts::loopback();
    hosts.add("evil.example");
    hosts.ips.insert(IpAddr::from([192, 0, 2, 7]));
    assert!(!authority.covers(&hosts));
    let key = KeyPair::generate().unwrap();
    let chain = authority
        .sign_node(&key.csr().unwrap(), &hosts, LEAF_LIFE)
        .unwrap();
    let mut store = rustls::RootCertStore::empty();
    store.add(fabric.root().certificate().clone()).unwrap();
    let stock =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .unwrap();
    let verify = |host: &str| {
        let host = ServerName::try_from(host.to_owned()).unwrap();
        stock.verify_server_cert(
            &chain.certs[0],
            &chain.certs[1..],
            &host,
            &[],
            UnixTime::now(),
        )
    };
    assert!(verify("localhost").is_ok());
    assert!(verify("127.0.0.1").is_ok());
    assert!(verify("evil.example").is_err());
    assert!(verify("192.0.2.7").is_err());
}
