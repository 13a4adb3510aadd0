//! The simulator against arithmetic: what a driver and workers make of chains of machines, beside what could be had.
//!
//! *Published* figures are those of a table of this project that was computed by hand before there was a simulator:
//! four or eight Macs, Llama 3.1 405B, Qwen3 235B and DeepSeek 671B at 4.5 bits a weight. *LAN* is 0.3 ms and 1 Gb/s
//! one way, *WAN* 20 ms and 100 Mb/s.
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use ram_core::catalog;
use ram_core::layers::LayerRange;
use ram_core::memory::Workload;
use ram_core::units::{ByteRate, Bytes, TokenCount, TokenRate};
use ram_pipeline::plan::{self, Link, Links, ModelNeeds, Node, Objective, Wish};
use ram_pipeline::sim::{self, Batch, Chain, Cost, Death, Load, Report, SimError};

const LLAMA: &str = "llama-3.1-405b";
const QWEN: &str = "qwen3-235b";
const DEEPSEEK: &str = "deepseek-v3";

fn model(alias: &str) -> ModelNeeds {
    ModelNeeds::of(catalog::resolve(alias).expect("a model of the catalogue"))
}

/// The model over so many machines of one kind, split as evenly as can be.
fn chain(alias: &str, stages: u16, gb_per_s: u64, percent: u64, link: Link) -> Chain {
    let model = model(alias);
    let count = |count: u16| NonZeroU16::new(count).expect("not zero");
    let layers = count(u16::try_from(model.layers().len()).expect("few layers"));
    let runs = LayerRange::split(layers, count(stages)).expect("fewer stages than layers");
    let speed = ByteRate::new(gb_per_s * percent * 10_000_000);
    let node = |number| Node::with(number, Bytes::from_gib(512), speed);
    let runs: Vec<_> = (1..).map(node).zip(runs).collect();
    Chain::new(&model, &runs, Links::uniform(link))
}

/// Stages that take these times for each token of a batch, in tenths of a millisecond.
fn made(tenths: &[u64], link: Link) -> Chain {
    let stage = |(number, tenths): (u8, &u64)| {
        let id = Node::with(number, Bytes::ZERO, ByteRate::new(1)).id;
        (id, Cost::per_token(Duration::from_micros(100 * tenths)))
    };
    Chain { stages: (1..).zip(tenths).map(stage).collect(), links: Links::uniform(link), width: 4096 }
}

fn answers(chain: &Chain, sessions: u32, tokens: u64) -> Report {
    let load = Load { sessions, tokens: TokenCount::new(tokens), ..Load::default() };
    let report = sim::run(chain, &load, None).expect("something to play");
    assert_eq!((report.failed, report.tokens.get()), (0, tokens * u64::from(sessions)));
    report
}

fn per_second(rate: TokenRate) -> f64 {
    rate.get() as f64 / 1e3
}

/// What one session can have at most: a token after the other, with nothing but weights to read and nothing but hidden
/// states to send.
fn most_alone(chain: &Chain) -> f64 {
    let one = Batch { tokens: TokenCount::new(1), positions: TokenCount::ZERO };
    let computing: Duration = chain.stages.iter().map(|(_, cost)| cost.time(one)).sum();
    let ends = |(from, to): (usize, usize)| chain.links.between(chain.stages[from].0, chain.stages[to].0);
    let stages = chain.stages.len();
    let ways: Vec<Link> = (0..stages).map(|from| ends((from, (from + 1) % stages))).collect();
    let hidden = |link: &Link| link.rate.time_for(Bytes::new(2 * u64::from(chain.width)));
    let delays: Duration = ways.iter().map(|link| link.delay).sum();
    let transfers: Duration = ways[..stages - 1].iter().map(hidden).sum();
    1.0 / (computing + delays + transfers).as_secs_f64()
}

/// What many sessions can have at most when `batch` of them share each pass.
fn most_in_all(chain: &Chain, batch: u64) -> f64 {
    let batch = Batch { tokens: TokenCount::new(batch), positions: TokenCount::ZERO };
    let slowest = chain.stages.iter().map(|(_, cost)| cost.time(batch)).max().expect("a stage");
    batch.tokens.get() as f64 / slowest.as_secs_f64()
}

/// Checks one session on a LAN and a WAN against published figures, and against arithmetic to one per cent.
fn check_alone(alias: &str, stages: u16, gb_per_s: u64, percent: u64, published: (f64, f64)) {
    for (link, published) in [(Link::LAN, published.0), (Link::WAN, published.1)] {
        let chain = chain(alias, stages, gb_per_s, percent, link);
        let report = answers(&chain, 1, 24);
        let (got, most) = (per_second(report.rate()), most_alone(&chain));
        let what = format!("{alias} on {stages} at {gb_per_s} GB/s, {percent} %, {:?}: {got}", link.delay);
        assert!(got <= most + 0.001 && got >= 0.99 * most, "{what}, where {most} can be had");
        assert!(got >= 0.95 * published && got <= 1.05 * published, "{what}, published {published}");
        assert_eq!(report.delays, (stages.into(), stages.into()), "a delay for each stage and no more");
    }
}

#[test]
fn one_session_is_as_fast_as_arithmetic_has_it() {
    check_alone(LLAMA, 4, 400, 70, (1.22, 1.11));
    check_alone(LLAMA, 4, 400, 100, (1.75, 1.52));
    check_alone(LLAMA, 4, 546, 70, (1.67, 1.46));
    check_alone(LLAMA, 4, 546, 100, (2.38, 1.98));
    check_alone(LLAMA, 4, 273, 70, (0.84, 0.78));
    check_alone(LLAMA, 4, 273, 100, (1.19, 1.08));
    check_alone(LLAMA, 8, 200, 70, (0.61, 0.55));
    check_alone(LLAMA, 8, 200, 100, (0.87, 0.76));
    check_alone(LLAMA, 8, 120, 70, (0.37, 0.35));
    check_alone(LLAMA, 8, 120, 100, (0.52, 0.48));
    check_alone("llama-3.3-70b", 2, 273, 70, (4.8, 4.0));
    check_alone("llama-3.3-70b", 2, 273, 100, (6.8, 5.4));
}

#[test]
fn one_session_of_experts_is_as_fast_as_arithmetic_has_it() {
    check_alone(QWEN, 4, 546, 55, (23.3, 8.1));
    check_alone(QWEN, 4, 546, 100, (41.2, 9.5));
    check_alone(QWEN, 4, 400, 55, (17.2, 7.2));
    check_alone(QWEN, 4, 400, 100, (30.7, 8.8));
    check_alone(QWEN, 4, 273, 55, (11.8, 6.1));
    check_alone(QWEN, 4, 273, 100, (21.2, 7.8));
    check_alone(QWEN, 8, 200, 55, (8.6, 3.6));
    check_alone(QWEN, 8, 200, 100, (15.3, 4.4));
    check_alone(DEEPSEEK, 4, 546, 55, (13.9, 6.5));
    check_alone(DEEPSEEK, 4, 546, 100, (24.8, 8.2));
    check_alone(DEEPSEEK, 8, 546, 55, (13.6, 4.2));
    check_alone(DEEPSEEK, 8, 546, 100, (23.8, 4.8));
    check_alone(DEEPSEEK, 8, 273, 55, (6.9, 3.2));
    check_alone(DEEPSEEK, 8, 273, 100, (12.4, 4.1));
}

/// Checks that so many sessions get at least nine tenths of a published figure, and no more than each could have alone.
fn check_many(chain: &Chain, sessions: u32, published: f64) {
    let got = per_second(answers(chain, sessions, 48).rate());
    // A window of time has a token of each session more or less.
    let most = f64::from(sessions) * most_alone(chain) * 1.03;
    assert!(got >= 0.9 * published && got <= most, "{sessions} sessions: {got}, published {published}");
}

#[test]
fn sessions_fill_a_chain_over_a_wide_area() {
    let qwen = chain(QWEN, 4, 546, 55, Link::WAN);
    for (sessions, published) in [(1, 8.1), (2, 16.2), (4, 32.4), (8, 64.7), (12, 96.2)] {
        check_many(&qwen, sessions, published);
    }
    check_many(&chain(DEEPSEEK, 8, 546, 55, Link::WAN), 28, 113.6);
}

#[test]
fn sessions_fill_a_chain_on_a_local_network() {
    check_many(&chain(LLAMA, 4, 546, 70, Link::LAN), 5, 6.7);
    check_many(&chain(LLAMA, 8, 200, 70, Link::LAN), 9, 4.9);
    check_many(&chain(QWEN, 4, 546, 55, Link::LAN), 5, 96.0);
    check_many(&chain(DEEPSEEK, 8, 546, 55, Link::LAN), 9, 114.0);
}

#[test]
fn more_sessions_than_stages_share_passes() {
    let check = |chain: &Chain, sessions: u32, published: f64, share: f64| {
        // With a group for each stage, and no more, a pass is shared by as many as can be.
        let batch = u64::from(sessions / 4);
        let (got, most) = (per_second(answers(chain, sessions, 32).rate()), most_in_all(chain, batch));
        assert!(got >= share * published && got <= 1.03 * most, "{sessions}: {got}, {published}, {most}");
    };
    let (qwen, llama) = (chain(QWEN, 4, 546, 55, Link::LAN), chain(LLAMA, 4, 546, 70, Link::LAN));
    check(&qwen, 20, 124.0, 1.0);
    check(&qwen, 40, 144.0, 1.0);
    // Where a pass of one takes as long as one of all, what comes first to a stage that has nothing to do goes alone.
    check(&llama, 20, 26.8, 0.84);
    check(&llama, 40, 53.6, 0.84);
}

#[test]
fn an_uneven_chain_is_as_fast_as_its_slowest_stage() {
    let uneven = made(&[200, 70, 70, 76], Link::LAN);
    let got = |sessions| per_second(answers(&uneven, sessions, 64).rate());
    assert!((23.0..23.4).contains(&got(1)), "{}", got(1));
    for sessions in [3, 5, 8] {
        let got = got(sessions);
        assert!(
            (49.0..=50.5).contains(&got),
            "{got} with {sessions} sessions, where the slowest lets 50 through"
        );
    }
}

#[test]
fn five_sessions_keep_four_equal_stages_busy() {
    let even = made(&[100; 4], Link::LAN);
    for sessions in 5..9 {
        let report = answers(&even, sessions, 64);
        let got = per_second(report.rate());
        assert!((90.0..=101.6).contains(&got), "{got} of 100 with {sessions}");
        assert!(report.stages.iter().all(|stage| stage.busy.get() >= 900), "{report:?}");
    }
}

#[test]
fn a_long_prompt_is_computed_by_all_stages_at_once() {
    let check = |chain: &Chain| {
        let prompt = TokenCount::new(4096);
        let load = Load { prompt, tokens: TokenCount::new(2), ..Load::default() };
        let report = sim::run(chain, &load, None).expect("something to play");
        let (pieces, stages) = (8, 4);
        let stage = &report.stages[1].passes;
        assert_eq!(stage.len(), pieces + 1);
        let alone: Duration = stage[..pieces].iter().map(|pass| pass.until - pass.from).sum();
        let ideal = alone.as_secs_f64() * (pieces + stages - 1) as f64 / pieces as f64;
        let got = report.first_token.1.as_secs_f64();
        assert!(got <= 1.25 * ideal && got > 0.98 * ideal, "{got} s, ideal {ideal}");
    };
    let llama = chain(LLAMA, 4, 546, 70, Link::LAN);
    check(&llama);
    // As Macs have it: eight tokens' arithmetic in the time in which weights are read once.
    check(&llama.with_arithmetic(NonZeroU32::new(8).expect("not zero")));
}

#[test]
fn over_a_wide_area_a_prompt_waits_for_its_links() {
    let chain = chain(LLAMA, 4, 546, 70, Link::WAN);
    let load = Load { prompt: TokenCount::new(4096), tokens: TokenCount::new(1), ..Load::default() };
    let report = sim::run(&chain, &load, None).expect("something to play");
    // 134 MB at 12.5 MB/s over each hop, piece by piece; hops work at once.
    assert!((10.7..10.7 + 4.5).contains(&report.first_token.0.as_secs_f64()), "{:?}", report.first_token);
    assert_eq!(report.hops[0].bytes.get() / 1_000_000, 134);
}

#[test]
fn frames_have_the_bytes_that_they_have_on_a_wire() {
    let report = answers(&chain(LLAMA, 4, 546, 70, Link::LAN), 2, 16);
    let (back, down) = report.hops.split_last().expect("hops");
    for hop in down {
        assert_eq!(hop.token_frames, 2 * 15, "the first token comes of the prompt");
        let each = hop.token_bytes.get() / hop.token_frames;
        assert!((32_768 + 200..=32_768 + 264).contains(&each), "{each} bytes: a hidden state and a head");
    }
    assert_eq!(back.token_frames, 2 * 16);
    assert!((80..264).contains(&(back.token_bytes.get() / back.token_frames)), "{back:?}");
}

#[test]
fn one_machine_alone_has_no_delays() {
    let report = answers(&chain(LLAMA, 1, 819, 70, Link::WAN), 1, 8);
    assert_eq!((report.delays, report.hops.len()), ((0, 0), 0));
    assert!((2.4..2.6).contains(&per_second(report.rate())), "one M3 Ultra, published 2.5");
}

#[test]
fn a_plan_keeps_what_it_promises() {
    let model = model(QWEN);
    let node = |number, gib, gb_per_s: u64| {
        let node = Node::with(number, Bytes::from_gib(gib), ByteRate::new(gb_per_s * 1_000_000_000));
        Node { overhead: Duration::from_micros(300), ..node }
    };
    let nodes = [node(1, 72, 300), node(2, 48, 220), node(3, 36, 150), node(4, 48, 300), node(5, 24, 110)];
    let mut links = Links::uniform(Link::LAN);
    links.set(nodes[0].id, nodes[3].id, Link { delay: Duration::from_millis(7), ..Link::LAN });
    for objective in [Objective::Latency, Objective::Throughput] {
        let wish = Wish { workload: Workload::default(), objective };
        let plan = plan::choose(&model, &nodes, &links, &wish).expect("there is room");
        let chain = Chain::of(&plan, &model, &nodes, links.clone()).expect("of these nodes");
        let alone = per_second(answers(&chain, 1, 48).rate());
        let promised = per_second(plan.expected.single);
        assert!(alone > 0.98 * promised && alone < 1.005 * promised, "{alone} of {promised}");
        let all = per_second(answers(&chain, plan.expected.sessions + 1, 48).rate());
        let promised = per_second(plan.expected.saturated);
        assert!(all > 0.9 * promised, "{all} of {promised} {objective:?}");
    }
}

#[test]
fn a_death_is_a_gap_and_no_token_is_lost() {
    let chain = chain(QWEN, 4, 546, 55, Link::LAN);
    let load = Load { sessions: 6, tokens: TokenCount::new(40), ..Load::default() };
    let quiet = sim::run(&chain, &load, None).expect("something to play");
    let (at, noticed, rebuilt) =
        (Duration::from_millis(600), Duration::from_millis(650), Duration::from_millis(1600));
    for stage in 1..4 {
        let death = Death { stage, at, noticed, rebuilt };
        let report = sim::run(&chain, &load, Some(death)).expect("something to play");
        assert_eq!((report.failed, report.tokens), (0, quiet.tokens));
        let gap = report.longest_gap;
        assert!(gap > rebuilt - at && gap < rebuilt - at + Duration::from_secs(1), "{gap:?}");
        assert!(report.took > quiet.took + (rebuilt - at));
        assert_eq!(report.delays, (4, 4));
    }
    let late = Death { stage: 1, at: quiet.took * 2, noticed: quiet.took * 2, rebuilt: quiet.took * 3 };
    assert_eq!(sim::run(&chain, &load, Some(late)), Ok(quiet), "who dies afterwards is not missed");
}

#[test]
fn what_cannot_be_played_is_refused() {
    let chain = made(&[10; 3], Link::LAN);
    let check =
        |chain: &Chain, load, death, expected| assert_eq!(sim::run(chain, &load, death), Err(expected));
    let (load, zero) = (Load::default(), TokenCount::ZERO);
    let none = Chain { stages: Vec::new(), ..chain.clone() };
    check(&none, load, None, SimError::NoStage);
    check(&chain, Load { sessions: 0, ..load }, None, SimError::NoLoad);
    check(&chain, Load { prompt: zero, ..load }, None, SimError::NoLoad);
    check(&chain, Load { tokens: zero, ..load }, None, SimError::NoLoad);
    let endless = Load { tokens: TokenCount::new(1 << 32), ..load };
    check(&chain, endless, None, SimError::TooLong { most: u32::MAX });
    let (prompt, piece) = (TokenCount::new(1 << 16), NonZeroU32::MAX);
    let got = Bytes::new(8192 * ((1 << 16) + 64));
    check(&chain, Load { prompt, piece, ..load }, None, SimError::PieceTooLong { got });
    let time = Duration::from_millis;
    let death =
        |stage, at, noticed| Some(Death { stage, at: time(at), noticed: time(noticed), rebuilt: time(9) });
    check(&chain, load, death(0, 1, 2), SimError::NoSuchDeath { stage: 0, stages: 3 });
    check(&chain, load, death(3, 1, 2), SimError::NoSuchDeath { stage: 3, stages: 3 });
    check(&chain, load, death(1, 3, 2), SimError::DeathOutOfOrder);
    check(&chain, load, death(1, 3, 10), SimError::DeathOutOfOrder);
    let model = model(QWEN);
    let node = Node::with(1, Bytes::from_gib(512), ByteRate::new(1_000_000_000));
    let wish = Wish { workload: Workload::default(), objective: Objective::Latency };
    let links = Links::uniform(Link::LAN);
    let plan = plan::choose(&model, &[node], &links, &wish).expect("there is room");
    let of = Chain::of(&plan, &model, &[], links).map(|chain| chain.width);
    assert_eq!(of, Err(SimError::UnknownNode { stage: 0 }));
}
