//! Links of every kind under the same checks: frames, greetings, strangers, silence.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, say by their line what went wrong")]

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use ram_core::id::{Epoch, JobId, NodeKey};
use ram_core::layers::LayerRange;
use ram_core::units::TokenCount;
use ram_pipeline::link::alive::{Pulse, Watched};
use ram_pipeline::link::frames::{self, Incoming};
use ram_pipeline::link::greet::{self, Open};
#[cfg(feature = "iroh")]
use ram_pipeline::link::iroh::{IrohLink, Socket};
use ram_pipeline::link::memory::{self, Cable, Way, Wire};
use ram_pipeline::link::tls::{self, ALPN, Door, Identity, TlsLink};
use ram_pipeline::link::{GREETING_MS, Link, LinkError, tcp};
use ram_proto::frame::{
    Carries, Clock, Code, Decoded, Frame, FrameError, HEARTBEAT_LOST_MS, HEARTBEAT_MS, Head, Heartbeat,
    Hello, Limits, ModelDigest, Of, Refusal, VERSION, Welcome,
};
use ram_proto::tensor::Dtype;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncWriteExt, ReadHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Memory,
    Tcp,
    Tls,
    #[cfg(feature = "iroh")]
    Iroh,
}

type Any = Box<dyn Link>;

impl Kind {
    const ALL: &[Self] = &[
        Self::Memory,
        Self::Tcp,
        Self::Tls,
        #[cfg(feature = "iroh")]
        Self::Iroh,
    ];

    /// A link: who dialled, who accepted.
    async fn pair(self) -> (Any, Any) {
        match self {
            Self::Memory => {
                let (near, far, _) = memory::pair(Wire::default(), Wire::default());
                (Box::new(near), Box::new(far))
            }
            Self::Tcp => {
                let (near, far) = tcp_pair().await;
                (Box::new(near), Box::new(far))
            }
            Self::Tls => {
                let (near, far) = tcp_pair().await;
                let (near, far) = private(near, far).await;
                (Box::new(near), Box::new(far))
            }
            #[cfg(feature = "iroh")]
            Self::Iroh => {
                let (near, far) = iroh_pair().await;
                (Box::new(near), Box::new(far))
            }
        }
    }

    /// Whether its ends know each other.
    fn proves(self) -> bool {
        !matches!(self, Self::Memory | Self::Tcp)
    }
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(tcp::dial(address), tcp::accept(&listener));
    (near.unwrap(), far.unwrap())
}

async fn private<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    near: S,
    far: S,
) -> (TlsLink<S>, TlsLink<S>) {
    let (us, them) = (identity(1), identity(2));
    let allowed = us.public();
    let door = Door::new(&them, move |key| *key == allowed);
    let (near, far) = tokio::join!(tls::dial(&us, near, them.public()), tls::accept(&door, far));
    (near.unwrap(), far.unwrap())
}

#[cfg(feature = "iroh")]
async fn iroh_pair() -> (IrohLink, IrohLink) {
    let socket = async |number: u8| {
        let listen = "127.0.0.1:0".parse().unwrap();
        Socket::bind(&[number; 32], listen, Vec::new(), |_| true).await.unwrap()
    };
    let (near, far) = (socket(1).await, socket(2).await);
    let addresses = far.addresses().unwrap();
    let accepted = async { far.accept().await.unwrap().open().await };
    let (near, far) = tokio::join!(near.dial(identity(2).public(), &addresses), accepted);
    (near.unwrap(), far.unwrap())
}

fn identity(number: u8) -> Identity {
    Identity::from_seed(&[number; 32])
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        model: ModelDigest::from_bytes([7; 32]),
        layers: LayerRange::new(4, 8).unwrap(),
        epoch: Epoch::new(3),
        carries: Carries::Steps,
        dtype: Dtype::Bf16,
        width: 4096,
    }
}

fn welcome() -> Welcome {
    Welcome { version: VERSION, credits: 64, kv_free: TokenCount::new(1000), sessions: 0 }
}

async fn open(near: Any, far: Any) -> (Open<Any>, Open<Any>) {
    let expected = hello();
    let (near, far) = tokio::join!(greet::dial(near, hello()), greet::accept(far, &expected, welcome()));
    (near.unwrap(), far.unwrap())
}

/// A link of which one end does not know what a frame is; it has said HELLO.
async fn raw_and_open() -> (Any, Open<Any>) {
    let (mut near, far) = Kind::Memory.pair().await;
    near.write_all(&bytes(&Head::Hello(hello()).into())).await.unwrap();
    (near, greet::accept(far, &hello(), welcome()).await.unwrap())
}

/// A frame that is told from others.
fn numbered(number: u32, payload: usize) -> Frame {
    // Of a period that no buffer has.
    let pattern: Vec<u8> = (0..=250).map(|at: u8| at.wrapping_mul(31) ^ number.to_le_bytes()[0]).collect();
    let mut payload_bytes = pattern.repeat(payload.div_ceil(pattern.len()));
    payload_bytes.truncate(payload);
    let of = Of { session: JobId::from_bits(number.into()), epoch: Epoch::new(1) };
    Frame { head: Head::Close(of), payload: payload_bytes.into() }
}

/// The bytes of a frame.
fn bytes(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.put_prelude(&mut out).unwrap();
    out.extend_from_slice(&frame.payload);
    out
}

/// The bytes of a frame with any head.
fn raw(head: &[u8], payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(head.len().try_into().unwrap());
    out.put_u32(payload.len().try_into().unwrap());
    out.put_slice(head);
    out.put_slice(payload);
    out
}

async fn next_known(incoming: &mut Incoming<ReadHalf<Any>>) -> Frame {
    match incoming.next().await.unwrap() {
        Decoded::Known(frame) => frame,
        Decoded::Unknown => panic!("a frame that is known"),
    }
}

#[tokio::test]
async fn frames_of_all_sizes_arrive_whole_and_in_order_both_ways() {
    const SIZES: [usize; 12] =
        [0, 1, 7, 255, 16_000, 16_384, 16_385, 32_768, 65_537, 1 << 20, (1 << 20) + 3, 8 << 20];
    for kind in Kind::ALL {
        let (near, far) = kind.pair().await;
        let ends = [near, far].map(|link| async {
            let (mut incoming, mut outgoing) = frames::over(link, Limits::FULL);
            let sending = async {
                for (number, size) in (0..).zip(SIZES) {
                    outgoing.send(&numbered(number, size)).await.unwrap();
                }
            };
            let hearing = async {
                for (number, size) in (0..).zip(SIZES) {
                    assert!(next_known(&mut incoming).await == numbered(number, size), "{kind:?} {size}");
                }
            };
            tokio::join!(sending, hearing);
            (incoming, outgoing)
        });
        let [near, far] = ends;
        tokio::join!(near, far);
    }
}

#[tokio::test]
async fn who_is_expected_is_welcomed_and_may_send_long_frames_from_then_on() {
    for kind in Kind::ALL {
        let (near, far) = kind.pair().await;
        let (mut near, mut far) = open(near, far).await;
        let known = |number| kind.proves().then(|| identity(number).public());
        assert_eq!((near.peer, far.peer), (known(2), known(1)), "{kind:?}");
        assert_eq!((&near.welcome, &far.hello), (&welcome(), &hello()));
        let long = numbered(1, 100_000);
        tokio::join!(async { near.outgoing.send(&long).await.unwrap() }, async {
            assert_eq!(next_known(&mut far.incoming).await, long);
        },);
        tokio::join!(async { far.outgoing.send(&long).await.unwrap() }, async {
            assert_eq!(next_known(&mut near.incoming).await, long);
        },);
    }
}

#[tokio::test]
async fn who_is_not_expected_is_told_why() {
    let other_layers = LayerRange::new(4, 9).unwrap();
    let cases = [
        (Hello { version: VERSION + 1, ..hello() }, Code::WrongVersion),
        (Hello { model: ModelDigest::from_bytes([8; 32]), ..hello() }, Code::WrongModel),
        (Hello { layers: other_layers, ..hello() }, Code::WrongLayers),
        (Hello { epoch: Epoch::new(2), ..hello() }, Code::WrongEpoch),
        (Hello { dtype: Dtype::F16, ..hello() }, Code::WrongShape),
        (Hello { width: 4095, ..hello() }, Code::WrongShape),
        (Hello { carries: Carries::Results, ..hello() }, Code::Protocol),
    ];
    for kind in Kind::ALL {
        for (said, code) in &cases {
            let (near, far) = kind.pair().await;
            let expected = hello();
            let (near, far) =
                tokio::join!(greet::dial(near, said.clone()), greet::accept(far, &expected, welcome()));
            let (near, far) = (near.unwrap_err(), far.unwrap_err());
            assert!(matches!(&far, LinkError::Declined(why) if why == code), "{kind:?} {code:?}: {far}");
            assert!(
                matches!(&near, LinkError::Refused(why) if why.code == *code),
                "{kind:?} {code:?}: {near}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_no_greeting_is_refused_and_the_link_closed() {
    let hello_json = serde_json::to_vec(&Head::Hello(hello())).unwrap();
    let mut early = raw(&hello_json, b"");
    early.extend_from_slice(&bytes(&numbered(1, 5000)));
    let long_head = [&u32::MAX.to_be_bytes()[..], &[0; 4]].concat();
    let long_payload = [&2_u32.to_be_bytes()[..], &(200_u32 << 20).to_be_bytes(), b"{}"].concat();
    let cases: [(&str, &[u8]); 7] = [
        ("garbage", b"GET / HTTP/1.1\r\nhost: somebody\r\n\r\n"),
        ("a head over the limit", &long_head),
        ("a payload over the limit", &long_payload),
        ("a payload behind HELLO", &raw(&hello_json, b"x")),
        ("a frame before WELCOME", &early),
        ("another frame", &bytes(&Head::Goaway.into())),
        ("an unknown frame", &raw(br#"{"type":"WARP"}"#, b"")),
    ];
    for kind in Kind::ALL {
        for (what, said) in cases {
            let (mut near, far) = kind.pair().await;
            let talk = async {
                near.write_all(said).await.unwrap();
                near.flush().await.unwrap();
                let mut heard = Incoming::new(near, Limits::STRANGER);
                let refusal = Refusal { of: None, code: Code::Protocol, retry_after_ms: None };
                let answer = heard.next().await;
                assert_eq!(answer.unwrap(), Decoded::Known(Head::Error(refusal).into()), "{kind:?}: {what}");
                assert!(matches!(heard.next().await, Err(LinkError::Closed)), "{kind:?}: {what}");
            };
            let expected = hello();
            let (refused, ()) = tokio::join!(greet::accept(far, &expected, welcome()), talk);
            let error = refused.unwrap_err();
            assert!(error.is_peers_fault(), "{kind:?}: {what}: {error}");
        }
    }
}

#[tokio::test]
async fn a_welcome_of_another_version_and_what_is_none_are_not_gone_on_with() {
    let check = async |answer: Frame, is_expected: fn(&LinkError) -> bool| {
        let (near, mut far) = Kind::Memory.pair().await;
        far.write_all(&bytes(&answer)).await.unwrap();
        let error = greet::dial(near, hello()).await.unwrap_err();
        assert!(is_expected(&error), "{error}");
    };
    let newer = Welcome { version: VERSION + 1, ..welcome() };
    check(Head::Welcome(newer).into(), |e| matches!(e, LinkError::Declined(Code::WrongVersion))).await;
    check(Head::Goaway.into(), |e| matches!(e, LinkError::OutOfTurn(_))).await;
    let too_early = |e: &LinkError| matches!(e, LinkError::Frame(FrameError::PayloadTooLong { .. }));
    check(numbered(1, 1), too_early).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_says_it_too_slowly_is_hung_up_on() {
    let limit = Duration::from_millis(GREETING_MS);
    let start = Instant::now();
    let (near, far) = Kind::Memory.pair().await;
    assert!(matches!(greet::hear(far).await, Err(LinkError::Silent)));
    assert_eq!(start.elapsed(), limit);
    drop(near);

    let (mut near, far) = Kind::Memory.pair().await;
    let drops = async {
        for byte in bytes(&Head::Hello(hello()).into()) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if near.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    };
    let start = Instant::now();
    let heard = async {
        assert!(matches!(greet::hear(far).await, Err(LinkError::Silent)));
        assert_eq!(start.elapsed(), limit);
    };
    tokio::join!(drops, heard);

    // Nor does who dials wait for ever: for WELCOME, or for TLS.
    let start = Instant::now();
    let (near, _far) = Kind::Memory.pair().await;
    assert!(matches!(greet::dial(near, hello()).await, Err(LinkError::Silent)));
    assert_eq!(start.elapsed(), limit);
    let (near, _far) = Kind::Memory.pair().await;
    assert!(matches!(tls::dial(&identity(1), near, identity(2).public()).await, Err(LinkError::Silent)));
    let (_near, far) = Kind::Memory.pair().await;
    let door = Door::new(&identity(1), |_| true);
    assert!(matches!(tls::accept(&door, far).await, Err(LinkError::Silent)));
    assert_eq!(start.elapsed(), 3 * limit);
}

#[tokio::test]
async fn a_stranger_is_refused_in_the_handshake() {
    let (us, them, stranger) = (identity(1), identity(2), identity(3));
    // Somebody else answers than was meant.
    let (near, far) = tcp_pair().await;
    let door = Door::new(&stranger, |_| true);
    let (near, far) = tokio::join!(tls::dial(&us, near, them.public()), tls::accept(&door, far));
    assert!(matches!(near, Err(LinkError::Stranger)), "{near:?}");
    assert!(matches!(far, Err(LinkError::Unwelcome)), "{far:?}");
    // Somebody else knocks.
    let (near, far) = tcp_pair().await;
    let allowed = us.public();
    let door = Door::new(&them, move |key| *key == allowed);
    let knock = async {
        let link = tls::dial(&stranger, near, them.public()).await.unwrap();
        greet::dial(link, hello()).await
    };
    let (near, far) = tokio::join!(knock, tls::accept(&door, far));
    assert!(matches!(near, Err(LinkError::Unwelcome)), "{near:?}");
    assert!(matches!(far, Err(LinkError::Stranger)), "{far:?}");
}

#[tokio::test]
async fn a_door_opens_as_of_the_moment_when_somebody_knocks() {
    let (us, them) = (identity(1), identity(2));
    let (allow, allowed) = watch::channel(Vec::<NodeKey>::new());
    let door = Door::new(&them, move |key| allowed.borrow().contains(key));
    for is_allowed in [false, true, false] {
        allow.send_replace(if is_allowed { vec![us.public()] } else { Vec::new() });
        let (near, far) = tcp_pair().await;
        let (_near, far) = tokio::join!(tls::dial(&us, near, them.public()), tls::accept(&door, far));
        assert_eq!(far.is_ok(), is_allowed);
    }
}

/// Lets every key in.
#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The key of a number, or the public half of one with the private half of another.
fn certified(public: u8, private: u8) -> Arc<CertifiedKey> {
    let of = |number| {
        let prefix =
            [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        let der = [&prefix[..], &[number; 32]].concat();
        any_eddsa_type(&PrivatePkcs8KeyDer::from(der)).unwrap()
    };
    let spki = of(public).public_key().unwrap().to_vec();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], of(private)))
}

/// What a client of some other kind comes to at a door that would let every key in.
async fn knock(
    versions: &[&'static rustls::SupportedProtocolVersion],
    key: Option<Arc<CertifiedKey>>,
    alpn: &[u8],
) -> Result<(), LinkError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Careless));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.alpn_protocols.retain(|protocol| !protocol.is_empty());
    let (near, far) = tcp_pair().await;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("node.invalid").unwrap();
    let door = Door::new(&identity(2), |_| true);
    let (_near, far) = tokio::join!(connector.connect(name, near), tls::accept(&door, far));
    far.map(drop)
}

#[tokio::test]
async fn nothing_but_tls_13_with_a_key_and_our_protocol_is_spoken() {
    let insecure = |error: LinkError| assert!(matches!(error, LinkError::Insecure(_)), "{error:?}");
    let key = || Some(certified(1, 1));
    knock(&[&TLS13], key(), ALPN).await.expect("as it should be");
    for (versions, key, alpn) in [
        (&TLS12, key(), ALPN),
        (&TLS13, None, ALPN),
        (&TLS13, Some(certified(1, 3)), ALPN),
        (&TLS13, key(), b"h2"),
        (&TLS13, key(), b""),
    ] {
        insecure(knock(&[versions], key, alpn).await.expect_err("not ours"));
    }
    // Frames without TLS.
    let (near, far) = tcp_pair().await;
    let door = Door::new(&identity(2), |_| true);
    let (near, far) = tokio::join!(greet::dial(near, hello()), tls::accept(&door, far));
    insecure(far.unwrap_err());
    assert!(near.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_somebody_changed_on_the_way_is_no_frame() {
    for way in [Way::There, Way::Back] {
        let (near, far, cable) = memory::pair(Wire::default(), Wire::default());
        let (near, far) = private(near, far).await;
        let (mut near, mut far) = open(Box::new(near), Box::new(far)).await;
        cable.corrupt(way);
        let (from, to) = match way {
            Way::There => (&mut near.outgoing, &mut far.incoming),
            Way::Back => (&mut far.outgoing, &mut near.incoming),
        };
        from.send(&numbered(1, 100)).await.unwrap();
        let heard = to.next().await;
        assert!(matches!(heard, Err(LinkError::Insecure(_))), "{heard:?}");
    }
}

#[tokio::test]
async fn a_link_that_is_closed_is_noticed_at_once() {
    for kind in Kind::ALL {
        let (near, far) = kind.pair().await;
        let (near, far) = open(near, far).await;
        let mut watched = Watched::new(near.incoming);
        drop(far);
        let end = watched.next().await;
        assert!(matches!(end, Err(LinkError::Closed)), "{kind:?}: {end:?}");
    }
}

/// An end of a link in conversation.
struct Talk {
    outbox: mpsc::Sender<Frame>,
    inbox: mpsc::Receiver<Frame>,
    ended: tokio::task::JoinHandle<(Result<(), LinkError>, Instant)>,
}

impl Talk {
    fn of(open: Open<Any>, sessions: u32) -> Self {
        let ((outbox, out), (into, inbox)) = (mpsc::channel(8), mpsc::channel(8));
        let (_, says) = watch::channel(Heartbeat { sessions, ..Heartbeat::default() });
        let pulse = Pulse { says, hop: watch::Sender::new(None) };
        let talking = async { (open.converse(out, into, |frame| frame, pulse).await, Instant::now()) };
        Self { outbox, inbox, ended: tokio::spawn(talking) }
    }
}

async fn talk_over_memory() -> (Talk, Talk, Cable) {
    let delay = Wire { delay: Duration::from_millis(20), rate: None };
    let (near, far, cable) = memory::pair(delay, delay);
    let (near, far) = open(Box::new(near), Box::new(far)).await;
    (Talk::of(near, 1), Talk::of(far, 2), cable)
}

fn heartbeat(sessions: u32) -> Frame {
    Head::Heartbeat(Heartbeat { sessions, ..Heartbeat::default() }).into()
}

#[tokio::test(start_paused = true)]
async fn both_ends_say_once_a_heartbeat_that_they_live() {
    let (mut near, mut far, _cable) = talk_over_memory().await;
    let start = Instant::now();
    for beat in 0..10 {
        assert_eq!(near.inbox.recv().await, Some(heartbeat(2)));
        assert_eq!(far.inbox.recv().await, Some(heartbeat(1)));
        assert_eq!(start.elapsed(), Duration::from_millis(20 + beat * HEARTBEAT_MS));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed_after_its_time_by_who_hears_nothing() {
    let (near, far, cable) = talk_over_memory().await;
    let start = Instant::now();
    let Talk { mut inbox, ended, outbox: _outbox } = far;
    let forget = tokio::spawn(async move { while inbox.recv().await.is_some() {} });
    let Talk { inbox: mut near_inbox, ended: near_ended, outbox: _near_outbox } = near;
    let forget_near = tokio::spawn(async move { while near_inbox.recv().await.is_some() {} });
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    cable.stall(Way::There);
    let (end, at) = ended.await.unwrap();
    assert!(matches!(end, Err(LinkError::Silent)), "{end:?}");
    // The last heartbeat went at two seconds.
    assert_eq!(at - start, Duration::from_millis(2_000 + 20 + HEARTBEAT_LOST_MS));
    // The other direction is whole: there the end is heard.
    let (end, at) = near_ended.await.unwrap();
    assert!(matches!(end, Err(LinkError::Closed)), "{end:?}");
    assert_eq!(at - start, Duration::from_millis(2_000 + 40 + HEARTBEAT_LOST_MS));
    forget.await.unwrap();
    forget_near.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_long_frame_on_a_slow_wire_is_no_silence_and_neither_is_an_owner_that_is_busy() {
    let (mut near, far) = raw_and_open().await;
    let mut watched = Watched::new(far.incoming);
    let frame = bytes(&numbered(1, 30));
    let beats = Duration::from_millis(HEARTBEAT_LOST_MS - 100);
    let drops = async {
        for piece in frame.chunks(20) {
            tokio::time::sleep(beats).await;
            near.write_all(piece).await.unwrap();
        }
    };
    let (heard, ()) = tokio::join!(watched.next(), drops);
    assert_eq!(heard.unwrap(), Decoded::Known(numbered(1, 30)));
    near.write_all(&bytes(&numbered(2, 3))).await.unwrap();
    tokio::time::sleep(10 * beats).await;
    assert_eq!(watched.next().await.unwrap(), Decoded::Known(numbered(2, 3)));
    // Asking again and again makes silence no shorter.
    let start = Instant::now();
    let end = loop {
        match tokio::time::timeout(Duration::from_millis(100), watched.next()).await {
            Ok(end) => break end,
            Err(_) => assert!(start.elapsed() <= Duration::from_millis(HEARTBEAT_LOST_MS)),
        }
    };
    assert!(matches!(end, Err(LinkError::Silent)));
}

#[tokio::test]
async fn a_conversation_carries_all_that_was_said_before_its_end() {
    for kind in Kind::ALL {
        let (near, far) = kind.pair().await;
        let (near, far) = open(near, far).await;
        let (near, mut far) = (Talk::of(near, 1), Talk::of(far, 2));
        for number in 0..50 {
            near.outbox.send(numbered(number, 30_000)).await.unwrap();
            let heard = loop {
                match far.inbox.recv().await.unwrap() {
                    Frame { head: Head::Heartbeat(_), .. } => {}
                    frame => break frame,
                }
            };
            assert!(heard == numbered(number, 30_000), "{kind:?}");
        }
        for number in 0..4 {
            near.outbox.send(numbered(number, 300_000)).await.unwrap();
        }
        drop(near.outbox);
        let mut said = Vec::new();
        while let Some(frame) = far.inbox.recv().await {
            said.push(frame);
        }
        said.retain(|frame| !matches!(frame.head, Head::Heartbeat(_)));
        assert!(said == [0, 1, 2, 3].map(|number| numbered(number, 300_000)), "{kind:?}: {said:?}");
        assert!(near.ended.await.unwrap().0.is_ok());
        assert!(matches!(far.ended.await.unwrap().0, Err(LinkError::Closed)), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_unknown_is_answered_and_the_link_lives() {
    let (mut near, far) = raw_and_open().await;
    let mut far = Talk::of(far, 2);
    near.write_all(&raw(br#"{"type":"WARP"}"#, b"xyz")).await.unwrap();
    near.write_all(&bytes(&numbered(1, 1))).await.unwrap();
    let mut heard = Incoming::new(near, Limits::STRANGER);
    let refusal = Refusal { of: None, code: Code::Unsupported, retry_after_ms: None };
    let clock = Some(Clock { at_us: 0, echo: None });
    let lives = Head::Heartbeat(Heartbeat { sessions: 2, clock, ..Heartbeat::default() });
    for frame in [Head::Welcome(welcome()).into(), lives.into(), Head::Error(refusal).into()] {
        assert_eq!(heard.next().await.unwrap(), Decoded::Known(frame));
    }
    assert_eq!(far.inbox.recv().await, Some(numbered(1, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_cut_ends_a_conversation_at_once_on_both_sides() {
    let (near, far, cable) = talk_over_memory().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let start = Instant::now();
    cable.cut();
    for talk in [near, far] {
        let (end, at) = talk.ended.await.unwrap();
        assert!(matches!(end, Err(LinkError::Closed)), "{end:?}");
        assert_eq!(at, start);
    }
}

#[test]
fn a_key_is_the_one_of_its_seed_and_shows_its_public_half_alone() {
    // RFC 8032, section 7.1, test 1.
    let seed: NodeKey = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse().unwrap();
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let identity = Identity::from_seed(seed.as_bytes());
    assert_eq!(identity.public().to_string(), public);
    assert_eq!(format!("{identity:?}"), format!("Identity({public})"));
}
