//! Plans against all splits, tried one by one, and against arithmetic.

use std::cmp::Reverse;

use proptest::prelude::*;
use ram_core::catalog;

use super::*;

/// Layers that differ, small enough for all splits to be tried.
fn model(sizes: &[(u64, u64)], embedding: u64, tied: bool) -> ModelNeeds {
    let layer = |&(weights, kv): &(u64, u64)| LayerNeeds {
        weights: Bytes::from_mib(weights),
        read: Bytes::from_mib(weights),
        kv_per_token: Bytes::new(kv),
        state: Bytes::ZERO,
    };
    ModelNeeds::made(sizes.iter().map(layer).collect(), Bytes::from_mib(embedding), tied)
}

fn node(number: u8, mib: u64, gb_per_s: u64) -> Node {
    Node::with(number, Bytes::from_mib(mib), ByteRate::new(gb_per_s * 1_000_000_000))
}

fn wish(objective: Objective) -> Wish {
    Wish { workload: Workload { context: TokenCount::new(1000), slots: 1 }, objective }
}

/// That each layer is held once and in order, by a node that has the memory, and no node twice.
fn check(plan: &Plan, model: &ModelNeeds, nodes: &[Node]) {
    let held: Vec<u16> = plan.stages.iter().flat_map(|stage| stage.layers.iter()).collect();
    let all: Vec<u16> = (0..u16::try_from(model.layers().len()).unwrap()).collect();
    assert_eq!(held, all, "every layer once, in order");
    for stage in &plan.stages {
        let node = nodes.iter().find(|node| node.id == stage.node).expect("a node that was offered");
        assert!(stage.needs.total() <= node.room.available(), "{stage:?} on {node:?}");
        assert_eq!(stage.needs, model.needs(stage.layers, wish(Objective::Latency).workload));
    }
    let mut ids: Vec<_> = plan.stages.iter().map(|stage| stage.node).collect();
    ids.extend(plan.spares.iter().map(|spare| spare.node));
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "no node twice");
}

/// The slowest stage or transfer, and the way of a token, as the plan's own lines say.
fn judged(plan: &Plan, model: &ModelNeeds, links: &Links) -> (Duration, Duration) {
    let token = plan.stages.iter().map(|stage| stage.time + stage.hop).sum();
    let transfers = plan
        .stages
        .windows(2)
        .map(|pair| links.between(pair[0].node, pair[1].node).rate.time_for(model.hop_bytes()));
    let slowest = plan.stages.iter().map(|stage| stage.time).chain(transfers).max().unwrap();
    (slowest, token)
}

/// The best (slowest, token) of all splits over all orders of all nodes, by trying each.
fn by_trying(model: &ModelNeeds, nodes: &[Node], links: &Links, objective: Objective) -> Option<(u64, u64)> {
    let count = model.layers().len();
    let mut best: Option<(u64, u64)> = None;
    let mut open = vec![Vec::<(usize, usize, usize)>::new()];
    while let Some(runs) = open.pop() {
        let a = runs.last().map_or(0, |run| run.2);
        if a == count {
            let stage = |&(node, a, b): &(usize, usize, usize)| {
                let run = LayerRange::new(u16::try_from(a).unwrap(), u16::try_from(b).unwrap()).unwrap();
                let node = &nodes[node];
                node.overhead + node.weights_per_s.time_for(model.read_bytes(run))
            };
            let times: Vec<Duration> = runs.iter().map(stage).collect();
            let hops: Vec<Link> =
                runs.windows(2).map(|pair| links.between(nodes[pair[0].0].id, nodes[pair[1].0].id)).collect();
            let transfers: Vec<Duration> =
                hops.iter().map(|link| link.rate.time_for(model.hop_bytes())).collect();
            let back = match &runs[..] {
                [_] => Duration::ZERO,
                [first, .., last] => links.between(nodes[last.0].id, nodes[first.0].id).delay,
                [] => unreachable!(),
            };
            let delays = hops.iter().map(|link| link.delay).sum::<Duration>();
            let token = times.iter().chain(&transfers).sum::<Duration>() + delays + back;
            let slowest = times.iter().chain(&transfers).max().copied().unwrap();
            let found =
                (u64::try_from(slowest.as_nanos()).unwrap(), u64::try_from(token.as_nanos()).unwrap());
            let rank = |(slowest, token): (u64, u64)| match objective {
                Objective::Latency => (token, slowest),
                Objective::Throughput => (slowest, token),
            };
            best = Some(best.map_or(found, |best| if rank(found) < rank(best) { found } else { best }));
            continue;
        }
        for (number, node) in nodes.iter().enumerate().filter(|(n, _)| runs.iter().all(|run| run.0 != *n)) {
            for b in a + 1..=count {
                let run = LayerRange::new(u16::try_from(a).unwrap(), u16::try_from(b).unwrap()).unwrap();
                if model.needs(run, wish(objective).workload).total() <= node.room.available() {
                    let mut runs = runs.clone();
                    runs.push((number, a, b));
                    open.push(runs);
                }
            }
        }
    }
    best
}

fn clusters() -> impl Strategy<Value = (ModelNeeds, Vec<Node>, Links)> {
    let layers = prop::collection::vec((20u64..200, 0u64..200_000), 1..8);
    let nodes = prop::collection::vec((300u64..1500, 1u64..40, 0u64..2000), 1..5);
    let links = prop::collection::vec((0u64..30_000, 1u64..1000), 16);
    (layers, 0u64..150, any::<bool>(), nodes, links, any::<bool>()).prop_map(
        |(layers, embedding, tied, nodes, ways, uniform)| {
            let made = |(number, (mib, speed, overhead)): (usize, (u64, u64, u64))| Node {
                overhead: Duration::from_micros(overhead),
                ..node(u8::try_from(number).unwrap(), mib, speed)
            };
            let nodes: Vec<Node> = nodes.into_iter().enumerate().map(made).collect();
            let mut links = Links::uniform(Link::LAN);
            let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from.id, to.id)));
            for ((from, to), (delay, rate)) in pairs.zip(ways).filter(|_| !uniform) {
                let (delay, rate) = (Duration::from_micros(delay), ByteRate::new(rate * 1_000_000));
                links.set(from, to, Link { delay, rate });
            }
            (model(&layers, embedding, tied), nodes, links)
        },
    )
}

/// Sums of parts are rounded up one by one, and those of a plan's lines as a whole.
fn near(x: Duration, y: u64) -> bool {
    u64::try_from(x.as_nanos()).unwrap().abs_diff(y) <= 20
}

proptest! {
    #[test]
    fn a_plan_is_the_best_of_all_splits((model, nodes, links) in clusters()) {
        for objective in [Objective::Latency, Objective::Throughput] {
            let plan = choose(&model, &nodes, &links, &wish(objective));
            let expected = by_trying(&model, &nodes, &links, objective);
            match (plan, expected) {
                (Ok(plan), Some((slowest, token))) => {
                    check(&plan, &model, &nodes);
                    let found = judged(&plan, &model, &links);
                    match objective {
                        Objective::Latency => prop_assert!(near(found.1, token), "{found:?} for {token}: {plan:?}"),
                        Objective::Throughput => {
                            prop_assert!(near(found.0, slowest), "{found:?} for {slowest}: {plan:?}");
                        }
                    }
                    prop_assert_eq!(plan.expected.token, found.1);
                }
                (Err(refusal), None) => prop_assert!(!refusal.to_string().is_empty()),
                (plan, expected) => prop_assert!(false, "{plan:?} for {expected:?}"),
            }
        }
    }

    #[test]
    fn the_order_of_the_offers_makes_no_odds((model, nodes, links) in clusters(), turn in 0usize..5) {
        let wish = wish(Objective::Latency);
        let mut turned = nodes.clone();
        turned.rotate_left(turn % nodes.len());
        turned.extend(nodes.first().copied());
        prop_assert_eq!(choose(&model, &nodes, &links, &wish), choose(&model, &turned, &links, &wish));
    }

    #[test]
    fn one_more_node_makes_no_plan_worse((model, nodes, links) in clusters()) {
        let wish = wish(Objective::Latency);
        let fewer = choose(&model, &nodes[..nodes.len() - 1], &links, &wish);
        if let Ok(fewer) = fewer {
            let more = choose(&model, &nodes, &links, &wish).unwrap();
            prop_assert!(more.expected.token <= fewer.expected.token);
        }
    }
}

#[test]
fn no_layer_of_a_real_model_is_lost() {
    // 33 layers over 2 nodes, 61 over 4, 94 over 4, 126 over 4 and 8: splits in which others lose layers.
    for (alias, counts) in [
        ("llama-3.2-1b", [2, 3]),
        ("deepseek-r1", [4, 7]),
        ("qwen3-235b", [4, 5]),
        ("llama-3.1-405b", [4, 8]),
    ] {
        let model = ModelNeeds::of(catalog::resolve(alias).expect("a model of the catalogue"));
        let all = LayerRange::new(0, u16::try_from(model.layers().len()).unwrap()).unwrap();
        for (count, objective) in counts.into_iter().zip([Objective::Latency, Objective::Throughput]) {
            let wish = wish(objective);
            let end = LayerRange::new(all.end() - 1, all.end()).unwrap();
            let both = model.needs(all, wish.workload).total() + model.needs(end, wish.workload).total();
            let share = both.get() / u64::from(count) * 5 / 4;
            let nodes: Vec<_> = (0..count)
                .map(|number| Node::with(number, Bytes::new(share), ByteRate::new(300_000_000_000)))
                .collect();
            let plan = choose(&model, &nodes, &Links::uniform(Link::LAN), &wish).unwrap();
            check(&plan, &model, &nodes);
            assert_eq!(plan.stages.len(), usize::from(count), "{alias}");
        }
    }
}

#[test]
fn a_node_that_makes_it_slower_is_left_out_and_a_spare() {
    let model = model(&[(100, 0); 8], 10, false);
    let nodes = [node(1, 2000, 100), node(2, 2000, 2), node(3, 100, 100)];
    let plan = choose(&model, &nodes, &Links::uniform(Link::WAN), &wish(Objective::Latency)).unwrap();
    assert_eq!(plan.stages.len(), 1);
    assert_eq!(plan.stages[0].node, nodes[0].id);
    assert_eq!(plan.spares, [Spare { node: nodes[1].id, stages: vec![0] }], "the third has no memory for it");
    assert_eq!((plan.stages[0].hop, plan.expected.sessions), (Duration::ZERO, 1));
}

#[test]
fn nodes_that_are_alike_hold_alike() {
    let model = model(&[(100, 0); 12], 0, false);
    let nodes: Vec<_> = (0..3).map(|number| node(number, 1200, 100)).collect();
    let plan = choose(&model, &nodes, &Links::uniform(Link::LAN), &wish(Objective::Latency)).unwrap();
    let layers: Vec<u16> = plan.stages.iter().map(|stage| stage.layers.len()).collect();
    assert_eq!(layers, [6, 6], "two are enough, and one more is one more hop");
}

#[test]
fn throughput_takes_a_slow_node_that_latency_leaves_out() {
    let model = model(&[(100, 0); 8], 0, false);
    let nodes = [node(1, 1200, 100), node(2, 1200, 20)];
    let links = Links::uniform(Link::LAN);
    let stages = |objective| {
        let plan = choose(&model, &nodes, &links, &wish(objective)).unwrap();
        let mut stages: Vec<_> = plan.stages.iter().map(|stage| (stage.node, stage.layers.len())).collect();
        stages.sort_by_key(|(node, _)| Reverse(*node == nodes[0].id));
        (stages.into_iter().map(|(_, layers)| layers).collect::<Vec<_>>(), plan.expected)
    };
    let (quick, latency) = stages(Objective::Latency);
    let (even, throughput) = stages(Objective::Throughput);
    assert_eq!((quick, even), (vec![8], vec![7, 1]));
    assert!(latency.token <= throughput.token && throughput.saturated >= latency.saturated);
}

/// Single streams of the tables that others are compared with: speeds at 0.7 (dense) and 0.55 (experts) of the chips'
/// memory, each node as large as need be.
#[test]
fn expectations_are_those_of_the_arithmetic() {
    let check = |alias: &str, nodes: u8, gb_per_s: f64, link: Link, expected: f64| {
        let model = ModelNeeds::of(catalog::resolve(alias).expect("a model of the catalogue"));
        let all = LayerRange::new(0, u16::try_from(model.layers().len()).unwrap()).unwrap();
        let wish = wish(Objective::Throughput);
        let share = model.needs(all, wish.workload).total().get() / u64::from(nodes) * 5 / 4;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a speed")]
        let speed = ByteRate::new((gb_per_s * 1e9) as u64);
        let nodes: Vec<_> = (0..nodes).map(|number| Node::with(number, Bytes::new(share), speed)).collect();
        let plan = choose(&model, &nodes, &Links::uniform(link), &wish).unwrap();
        let found = 1.0 / plan.expected.token.as_secs_f64();
        assert!((found / expected - 1.0).abs() < 0.04, "{alias}: {found} for {expected}\n{plan}");
    };
    check("llama-3.1-405b", 4, 0.7 * 546.0, Link::LAN, 1.67);
    check("llama-3.1-405b", 4, 0.7 * 546.0, Link::WAN, 1.46);
    check("llama-3.1-405b", 8, 0.7 * 200.0, Link::LAN, 0.61);
    check("qwen3-235b", 4, 0.55 * 546.0, Link::LAN, 23.3);
    check("qwen3-235b", 4, 0.55 * 546.0, Link::WAN, 8.1);
    check("deepseek-r1", 8, 0.55 * 546.0, Link::LAN, 13.6);
    check("deepseek-r1", 8, 0.55 * 546.0, Link::WAN, 4.2);
}

#[test]
fn a_refusal_says_what_is_missing() {
    let model = model(&[(100, 100_000); 8], 0, false);
    let links = Links::uniform(Link::LAN);
    let refusal = |nodes: &[Node]| choose(&model, nodes, &links, &wish(Objective::Latency)).unwrap_err();
    assert_eq!(refusal(&[]), Refusal::NoNodes);
    let crowd: Vec<_> = (0..65).map(|number| node(number, 9000, 1)).collect();
    assert_eq!(refusal(&crowd), Refusal::TooManyNodes { nodes: 65 });

    let too_large = refusal(&[node(1, 900, 1), node(2, 900, 1)]);
    assert!(matches!(too_large, Refusal::TooLarge { nodes: 2, shorter: Some(_), .. }), "{too_large}");
    assert_eq!(
        too_large.to_string(),
        "the model needs 1.9 GiB with headroom, and the 2 machines have 1.7 GiB for it together: 203.5 MiB are \
         missing; with sessions of 500 tokens at most it would fit"
    );
    let piece = refusal(
        &[node(0, 330, 1); 9]
            .iter()
            .enumerate()
            .map(|(number, _)| node(u8::try_from(number).unwrap(), 330, 1))
            .collect::<Vec<_>>(),
    );
    assert!(matches!(piece, Refusal::PieceTooLarge { .. }), "{piece}");
    let scattered: Vec<_> = (0..7).map(|number| node(number, 450, 1)).collect();
    let scattered = refusal(&scattered);
    assert!(matches!(scattered, Refusal::TooScattered { .. }), "{scattered}");
}
