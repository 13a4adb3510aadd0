//! What the agent adds to a token: `cargo bench -p ram-provider`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ram_core::chat::{ChatMessage, Role};
use ram_core::id::{Attempt, Epoch, JobId};
use ram_core::job::{GenerationParams, Job, Sampling};
use ram_core::provider::{Hardware, ModelOffer, ModelState, ProviderSpec};
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_crypto::identity::NodeIdentity;
use ram_proto::control::{Capabilities, Decoded, Nonce, ToProvider};
use ram_provider::agent::{Agent, AgentConfig, Effect, Event, Piece, Ticket};

const MODEL: &str = "ram-aggregator/ram-demo-4bit";
const RUNS: u16 = 16;

/// An agent with sixteen running jobs, and their tickets.
fn busy(now: Timestamp) -> (Agent, Vec<Ticket>) {
    let gib = Bytes::from_gib(8);
    let hardware =
        Hardware { chip: String::new(), os: String::new(), memory: gib, usable_memory: gib, cpus: 2 };
    let offer = ModelOffer { model: MODEL.parse().expect("an id"), state: ModelState::Loaded, speed: None };
    let spec = ProviderSpec {
        name: "bench".parse().expect("a name"),
        wallet: None,
        version: String::new(),
        hardware,
        memory_cap: gib,
        offers: vec![offer],
    };
    let config = AgentConfig { spec, memory_free: gib, slots: RUNS, queue_max: 0, jitter_seed: 1 };
    let mut agent = Agent::new(config, Arc::new(NodeIdentity::from_seeds([1; 32], [2; 32])));
    let mut effects = Vec::new();
    let capabilities = Capabilities::ours();
    let challenge = ToProvider::Challenge {
        network: 84_530,
        coordinator: "bench".to_owned(),
        nonce: Nonce::from_bytes([0; 32]),
        capabilities: capabilities.clone(),
    };
    let provider = "p_00000000000000000000000000000000".parse().expect("an id");
    let registered =
        ToProvider::Registered { provider, epoch: Epoch::new(1), heartbeat_ms: 10_000, capabilities };
    let runs = (0..RUNS).map(|number| ToProvider::Run {
        attempt: Attempt::FIRST,
        job: Box::new(job(number.into())),
        group: None,
    });
    agent.handle(Event::Wake, now, &mut effects);
    agent.handle(Event::LinkUp, now, &mut effects);
    for message in [challenge, registered].into_iter().chain(runs) {
        agent.handle(Event::Message(Decoded::Known(message)), now, &mut effects);
    }
    let tickets = effects.into_iter().filter_map(|effect| match effect {
        Effect::Generate { ticket, .. } => Some(ticket),
        _ => None,
    });
    (agent, tickets.collect())
}

fn job(number: u128) -> Job {
    let params = GenerationParams::new(TokenCount::new(64), Sampling::default());
    Job::new(
        JobId::from_bits(number),
        MODEL.parse().expect("an id"),
        vec![ChatMessage::new(Role::User, "hello")],
        params,
    )
}

fn token(criterion: &mut Criterion) {
    let mut now = Timestamp::from_millis(1);
    let (mut agent, tickets) = busy(now);
    let mut effects = Vec::new();
    let mut next = tickets.iter().cycle();
    criterion.bench_function("a token of one of sixteen jobs", |bencher| {
        bencher.iter(|| {
            let ticket = *next.next().expect("there are sixteen");
            let piece = Piece { tokens: TokenCount::new(1), content: " word".into(), ..Piece::default() };
            now = now.after(Duration::from_millis(1));
            agent.handle(Event::Piece { ticket, piece }, now, &mut effects);
            black_box(agent.wake_at());
            effects.clear();
        });
    });
}

criterion_group!(benches, token);
criterion_main!(benches);
