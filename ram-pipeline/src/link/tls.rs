//! TLS 1.3 with both ends known by their node keys: raw public keys (RFC 7250), so there are no certificates, names or
//! dates to go wrong.
//!
//! ```text
//! dials                                       accepts
//!   | -- ClientHello: raw keys alone, ALPN --> |
//!   | <- its key, and proof ------------------ |   the one key that was named, or the end of it
//!   | -- our key, and proof -----------------> |   a key that the Door opens to, or the end of it
//!   | -- frames ------------------------------ |
//! ```
//!
//! Who dials is done before the other end has seen its key: if that one refuses it, the first read says so, with
//! [`LinkError::Unwelcome`]. No byte of a frame is looked at before.
//!
//! Sessions are not resumed and nothing is sent early: links live for hours, and a ticket would let in whom the door no
//! longer opens to.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ram_core::id::NodeKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use zeroize::Zeroizing;

use super::{GREETING, Link, LinkError, within};

/// What is spoken over these links, as ALPN names it (RFC 7301).
pub const ALPN: &[u8] = b"ram-pipeline/1";

/// This node's key, with its secret half.
#[derive(Clone)]
pub struct Identity {
    public: NodeKey,
    signing: Arc<dyn SigningKey>,
}

impl Identity {
    /// Of the seed of an Ed25519 key (RFC 8032, section 5.1.5). Its owner keeps it where it is wiped: no copy stays
    /// behind here but the signing key.
    ///
    /// # Panics
    /// Never: every 32 bytes are a seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let mut der = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
        let (prefix, key) = der.split_at_mut(PKCS8_PREFIX.len());
        prefix.copy_from_slice(&PKCS8_PREFIX);
        key.copy_from_slice(seed);
        let signing = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..]));
        let signing = signing.expect("every 32 bytes are a seed of an Ed25519 key");
        let public = signing.public_key().and_then(|spki| node_key(&spki));
        Self { public: public.expect("an Ed25519 key tells its public half"), signing }
    }

    /// The public half: who this node is.
    #[must_use]
    pub const fn public(&self) -> NodeKey {
        self.public
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        let spki = spki(&self.public).to_vec();
        Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], Arc::clone(&self.signing)))
    }
}

impl fmt::Debug for Identity {
    /// The public half alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// Who accepts links, and from whom.
#[derive(Clone, Debug)]
pub struct Door {
    config: Arc<ServerConfig>,
}

impl Door {
    /// Opens to the keys of which `opens_to` says so, as of the moment when they knock.
    ///
    /// # Panics
    /// Never: TLS 1.3 is among what ring can do.
    #[must_use]
    pub fn new(identity: &Identity, opens_to: impl Fn(&NodeKey) -> bool + Send + Sync + 'static) -> Self {
        let keys = Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("ring has cipher suites of TLS 1.3")
            .with_client_cert_verifier(Arc::new(Pinned(opens_to)))
            .with_cert_resolver(keys);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Self { config: Arc::new(config) }
    }
}

/// A private link over a stream `S`.
#[derive(Debug)]
pub struct TlsLink<S> {
    stream: TlsStream<S>,
    peer: NodeKey,
}

/// Makes a link private, to the one peer that is meant.
///
/// # Errors
/// [`LinkError`]: [`LinkError::Stranger`] if somebody else is there. That the other end does not want this node is
/// told by the first read.
///
/// # Panics
/// Never: TLS 1.3 is among what ring can do.
pub async fn dial<S>(identity: &Identity, stream: S, peer: NodeKey) -> Result<TlsLink<S>, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let keys = Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified()));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has cipher suites of TLS 1.3")
        .dangerous() // It is where one looks at keys oneself.
        .with_custom_certificate_verifier(Arc::new(Pinned(move |key: &NodeKey| *key == peer)))
        .with_client_cert_resolver(keys);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    let nobody =
        ServerName::try_from("node.invalid").expect("it has the form of a name, which is all that is asked");
    let connector = TlsConnector::from(Arc::new(config));
    let stream = within(GREETING, async { Ok(connector.connect(nobody, stream).await?) }).await?;
    TlsLink::shaken(stream.into())
}

/// Makes a link private, if the peer is one that the door opens to.
///
/// # Errors
/// [`LinkError`]: [`LinkError::Stranger`] if it is not.
pub async fn accept<S>(door: &Door, stream: S) -> Result<TlsLink<S>, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(Arc::clone(&door.config));
    let stream = within(GREETING, async { Ok(acceptor.accept(stream).await?) }).await?;
    TlsLink::shaken(stream.into())
}

impl<S> TlsLink<S> {
    /// After the handshake: what must hold of it.
    fn shaken(stream: TlsStream<S>) -> Result<Self, LinkError> {
        let (_, connection) = stream.get_ref();
        if connection.alpn_protocol() != Some(ALPN) {
            let error = rustls::Error::NoApplicationProtocol;
            return Err(LinkError::Insecure(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        let key = connection.peer_certificates().and_then(|keys| node_key(keys.first()?));
        let peer = key.ok_or(LinkError::Stranger)?;
        Ok(Self { stream, peer })
    }
}

impl<S: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin + 'static> Link for TlsLink<S> {
    fn peer(&self) -> Option<NodeKey> {
        Some(self.peer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsLink<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsLink<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What rustls found, if it was it.
pub(super) enum Fault {
    /// The peer's key is not one that is let in.
    Stranger,
    /// The peer says that ours is none.
    Unwelcome,
    /// Anything else.
    Other,
}

/// What rustls found, in an error of a stream.
pub(super) fn fault(error: &io::Error) -> Option<Fault> {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    Some(match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        InvalidCertificate(CertificateError::ApplicationVerificationFailure) => Fault::Stranger,
        AlertReceived(AlertDescription::AccessDenied) => Fault::Unwelcome,
        _ => Fault::Other,
    })
}

/// Takes the keys of which its function says so.
struct Pinned<F>(F);

impl<F: Fn(&NodeKey) -> bool> Pinned<F> {
    fn check(&self, spki: &[u8]) -> Result<(), rustls::Error> {
        let is_let_in = node_key(spki).is_some_and(|key| (self.0)(&key));
        is_let_in.then_some(()).ok_or_else(|| CertificateError::ApplicationVerificationFailure.into())
    }
}

impl<F> fmt::Debug for Pinned<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

fn proves(
    message: &[u8],
    spki: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
    let algorithms = ring::default_provider().signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &spki, signature, &algorithms)
}

/// No other version is offered, so nobody can ask for it; the trait has a method all the same.
fn too_old() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl<F: Fn(&NodeKey) -> bool + Send + Sync> ServerCertVerifier for Pinned<F> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        proves(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl<F: Fn(&NodeKey) -> bool + Send + Sync> ClientCertVerifier for Pinned<F> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        proves(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A key as TLS carries it: SubjectPublicKeyInfo (RFC 8410, section 4).
fn spki(key: &NodeKey) -> [u8; SPKI_PREFIX.len() + 32] {
    let mut spki = [0; SPKI_PREFIX.len() + 32];
    spki[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
    spki[SPKI_PREFIX.len()..].copy_from_slice(key.as_bytes());
    spki
}

/// The node of a SubjectPublicKeyInfo, if it is one of an Ed25519 key.
fn node_key(spki: &[u8]) -> Option<NodeKey> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(NodeKey::from_bytes(key.try_into().ok()?))
}

/// SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING of 32 bytes }, up to the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING of 32 bytes } }, up to the seed (RFC
/// 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
