//! What a piece of an answer costs the coordinator on its way from a provider to a user, in words and in a box:
//! `cargo bench -p ram-coordinator --bench relay`.
//!
//! The message is read, goes through the state machine, and becomes the event that the user hears. Sockets are left
//! out: they are the same for both. A piece has a token's worth of text; its box is padded, and so longer.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on panics")]

use std::hint::black_box;
use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ram_coordinator::state::{
    ConnId, Coordinator, Effect, Event, Limits, Payer, Plain, Reply, Request, Sealed, StateConfig, Submission,
};
use ram_core::chat::tools::PromptJson;
use ram_core::chat::{ChatMessage, Role};
use ram_core::id::{Attempt, JobId, ProviderId};
use ram_core::job::{GenerationParams, Sampling};
use ram_core::provider::{Hardware, Load, ModelOffer, ModelState, ProviderSpec, Thermal};
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_crypto::identity::NodeIdentity;
use ram_crypto::statement::Statement;
use ram_proto::blob::Blob;
use ram_proto::control::sealed::{SealedChunk, SealedPrompt};
use ram_proto::control::{
    self, Capabilities, Chunk, Decoded, E2eKey, NodeStatement, Nonce, Register, Signature, ToCoordinator,
};
use ram_proto::openai::{AnswerPiece, Asked, CompletionHead, CompletionId, StreamedAnswer, sse};
use ram_proto::rest::E2eEvent;

const CONN: ConnId = ConnId(1);
const JOB: JobId = JobId::from_bits(1);
const MODEL: &str = "ram-demo";
const NOW: Timestamp = Timestamp::from_millis(1_000_000);
/// So many that no bench comes to their end.
const TOKENS: TokenCount = TokenCount::new(1 << 40);

/// A coordinator with one node, which answers one job.
struct Rig {
    coordinator: Coordinator,
    effects: Vec<Effect>,
    seq: u32,
}

impl Rig {
    fn new(request: impl FnOnce(ProviderId) -> Request) -> Self {
        let config = StateConfig { network: 84_530, name: "here".to_owned(), limits: Limits::default() };
        let mut rig = Self { coordinator: Coordinator::new(config), effects: Vec::new(), seq: 0 };
        let nonce = Nonce::from_bytes([1; 32]);
        rig.handle(Event::SocketOpened { conn: CONN, nonce });
        let (register, provider) = register(nonce);
        rig.say(register);
        let (payer, model) = (Payer::Key("key".to_owned()), MODEL.parse().unwrap());
        let request = request(provider);
        rig.handle(Event::Submit(Box::new(Submission { job: JOB, payer, model, request, preferred: None })));
        rig.handle(Event::Held { job: JOB, result: Ok(()) });
        rig.say(ToCoordinator::Accepted { job: JOB, attempt: Attempt::FIRST, prompt: TokenCount::new(9) });
        rig
    }

    fn handle(&mut self, event: Event) {
        self.effects.clear();
        self.coordinator.handle(event, NOW, &mut self.effects);
    }

    fn say(&mut self, message: ToCoordinator) {
        self.handle(Event::FromProvider { conn: CONN, message: Box::new(message) });
    }

    /// The next message, as it comes.
    fn next(&mut self, message: impl FnOnce(u32) -> ToCoordinator) -> String {
        self.seq += 1;
        control::encode(&message(self.seq - 1))
    }

    /// What the user is told when this comes.
    fn hear(&mut self, text: &str) -> Reply {
        let Ok(Decoded::Known(message)) = control::decode(text) else { panic!("a message") };
        self.say(message);
        let reply = self.effects.drain(..).find_map(|effect| match effect {
            Effect::Reply { reply, .. } => Some(reply),
            _ => None,
        });
        reply.expect("the user is told")
    }
}

fn register(nonce: Nonce) -> (ToCoordinator, ProviderId) {
    let identity = NodeIdentity::from_seeds([1; 32], [2; 32]);
    let statement = NodeStatement {
        network: 84_530,
        coordinator: "here".to_owned(),
        nonce,
        node_key: ram_core::id::NodeKey::from_bytes(identity.node_public()),
        e2e_key: E2eKey::from_bytes(identity.e2e_public()),
        wallet: None,
        name: "node".parse().unwrap(),
        expires_at: Timestamp::from_millis(1_060_000),
    };
    let signed = Statement {
        network: 84_530,
        coordinator: "here".to_owned(),
        nonce: [1; 32],
        node_key: identity.node_public(),
        e2e_key: identity.e2e_public(),
        wallet: None,
        name: "node".to_owned(),
        expires_ms: 1_060_000,
    };
    let offer = ModelOffer {
        model: ram_core::catalog::resolve(MODEL).unwrap().model_id(),
        state: ModelState::Loaded,
        speed: None,
    };
    let hardware = Hardware {
        chip: "bench".to_owned(),
        os: "bench".to_owned(),
        memory: Bytes::from_gib(8),
        usable_memory: Bytes::from_gib(8),
        cpus: 2,
    };
    let spec = ProviderSpec {
        name: statement.name.clone(),
        wallet: None,
        version: "0".to_owned(),
        hardware,
        memory_cap: Bytes::from_gib(4),
        offers: vec![offer],
    };
    let memory_free = Bytes::from_gib(3);
    let load = Load { running: 0, queued: 0, slots: 2, memory_free, thermal: Thermal::Nominal };
    let (provider, signature) = (statement.node_key.provider_id(), signed.sign(&identity));
    let signature = Signature::from_bytes(signature);
    let capabilities = Capabilities::ours();
    let register = Register { statement, signature, spec, load, capabilities };
    (ToCoordinator::Register(Box::new(register)), provider)
}

fn words(seq: u32) -> ToCoordinator {
    ToCoordinator::Chunk(Chunk {
        job: JOB,
        attempt: Attempt::FIRST,
        seq,
        tokens: TokenCount::new(1),
        content: " capital".into(),
        reasoning: "".into(),
        tool_calls: Vec::new(),
        logprobs: Vec::new(),
    })
}

fn a_box(seq: u32) -> ToCoordinator {
    ToCoordinator::SealedChunk(SealedChunk {
        job: JOB,
        attempt: Attempt::FIRST,
        seq,
        tokens: TokenCount::new(1),
        nonce: (seq == 0).then(|| Blob::new(&[1; 32])),
        sealed: Some(Blob::new(&[2; 272])),
        last: false,
    })
}

/// How long it takes to do this with all of them.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn time(texts: &[String], mut relay: impl FnMut(&str) -> String) -> Duration {
    let start = Instant::now();
    for text in texts {
        black_box(relay(black_box(text)));
    }
    start.elapsed()
}

fn relay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay");
    let mut rig = Rig::new(|_| {
        let params = GenerationParams::new(TOKENS, Sampling::default());
        let messages = vec![ChatMessage::new(Role::User, "hello")];
        let chat_template_kwargs = PromptJson::default();
        Request::Plain(Box::new(Plain { messages, tools: Vec::new(), chat_template_kwargs, params }))
    });
    let head = CompletionHead { id: CompletionId(JOB), created: NOW, model: MODEL.parse().unwrap() };
    let mut answer = StreamedAnswer::new(head, Asked::default(), NonZeroU8::MIN);
    group.bench_function("in words", |bench| {
        bench.iter_custom(|count| {
            let texts: Vec<String> = (0..count).map(|_| rig.next(words)).collect();
            time(&texts, |text| {
                let Reply::Delta { content, .. } = rig.hear(text) else { panic!("words") };
                answer.push(0, AnswerPiece { content, ..AnswerPiece::default() })
            })
        });
    });
    let mut rig = Rig::new(|provider| {
        let prompt = SealedPrompt::V2 { ciphertext: Blob::new(&[3; 272]), enc: Blob::new(&[4; 32]) };
        Request::Sealed(Sealed { prompt, max_tokens: TOKENS, temperature: None, provider })
    });
    group.bench_function("in a box", |bench| {
        bench.iter_custom(|count| {
            let texts: Vec<String> = (0..count).map(|_| rig.next(a_box)).collect();
            time(&texts, |text| {
                let Reply::Sealed { sealed, .. } = rig.hear(text) else { panic!("a box") };
                let event = E2eEvent { encrypted_chunk_b64: Some(sealed), ..E2eEvent::default() };
                sse::data(&serde_json::to_string(&event).unwrap())
            })
        });
    });
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
