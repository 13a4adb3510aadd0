//! The rules of a group, one by one; [`night`] plays many of them at once.

mod night;

use std::num::NonZeroU16;

use ram_core::memory::Breakdown;
use ram_core::units::{Bytes, TokenCount, TokenRate};
use ram_proto::control::shard::{Addresses, ShardLinked};

use super::*;
use crate::plan::{Expected, Objective, Spare, Stage};

const LAYERS: u16 = 12;
const GROUP: GroupId = GroupId::from_bits(7);

pub(super) fn key(number: u8) -> NodeKey {
    NodeKey::from_bytes([number; 32])
}

pub(super) fn id(number: u8) -> ProviderId {
    key(number).provider_id()
}

pub(super) fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// A plan over `holders`, as even as can be, that promises so many tokens a second.
pub(super) fn plan(holders: &[u8], spares: &[(u8, &[usize])], rate: u64) -> Plan {
    let layers = NonZeroU16::new(LAYERS).unwrap();
    let runs = LayerRange::split(layers, NonZeroU16::new(u16::try_from(holders.len()).unwrap()).unwrap());
    let needs = Breakdown::new(Bytes::ZERO, Bytes::ZERO, Bytes::ZERO);
    let stage = |(node, layers): (&u8, LayerRange)| Stage {
        node: id(*node),
        layers,
        needs,
        time: Duration::ZERO,
        hop: Duration::ZERO,
    };
    let spare = |(node, stages): &(u8, &[usize])| Spare { node: id(*node), stages: stages.to_vec() };
    let rate = TokenRate::new(rate);
    Plan {
        stages: holders.iter().zip(runs.unwrap()).map(stage).collect(),
        spares: spares.iter().map(spare).collect(),
        expected: Expected { token: Duration::ZERO, single: rate, saturated: rate, sessions: 1 },
    }
}

pub(super) fn terms() -> Terms {
    Terms {
        model: "llama-3.3-70b".parse().unwrap(),
        layers: NonZeroU16::new(LAYERS).unwrap(),
        positions: TokenCount::new(4096),
        sessions: 4,
        objective: Objective::Latency,
        waits: Waits {
            load: Duration::from_secs(120),
            link: Duration::from_secs(15),
            plan: Duration::from_secs(60),
            ready: Duration::from_secs(600),
        },
    }
}

pub(super) fn word(number: u8, layers: LayerRange) -> ShardReady {
    ShardReady {
        group: GROUP,
        layers,
        addresses: Addresses::new(vec![format!("192.0.2.{number}:7000")]).unwrap(),
        digest: ModelDigest::from_bytes([1; 32]),
        width: 64,
        dtype: Dtype::Bf16,
        kv_free: TokenCount::new(4096),
    }
}

fn range(first: u16, end: u16) -> LayerRange {
    LayerRange::new(first, end).unwrap()
}

/// What a group wants, in short.
#[derive(Clone, Debug, PartialEq)]
enum Want {
    Load(u8, LayerRange),
    Link(u64, Vec<u8>),
    Unload(u8),
    Ready(u64, u8, Jobs),
    Broken(u64),
    Ask(Vec<u8>),
    Ended(End),
}

struct Rig {
    group: Group,
    now: u64,
}

impl Rig {
    fn new(plan: &Plan) -> (Self, Vec<Want>) {
        let mut effects = Vec::new();
        let group = Group::new(GROUP, terms(), plan, at(0), &mut effects).unwrap();
        (Self { group, now: 0 }, short(&effects))
    }

    /// Three nodes that serve, with these spares, which are warm.
    fn ready(spares: &[(u8, &[usize])]) -> Self {
        let (mut rig, wants) = Self::new(&plan(&[1, 2, 3], spares, 1000));
        rig.load_all(&wants);
        assert_eq!(rig.group.epoch(), Epoch::new(1));
        assert_eq!(rig.link_all(&[1, 2, 3]), [Want::Ready(1, 1, Jobs::StartAnew)]);
        rig
    }

    /// Does what was asked for.
    fn load_all(&mut self, wants: &[Want]) -> Vec<Want> {
        let loads = wants.iter().filter_map(|want| match want {
            Want::Load(node, layers) => Some((*node, *layers)),
            _ => None,
        });
        loads.flat_map(|(node, layers)| self.hold(node, layers)).collect()
    }

    fn on(&mut self, event: Event) -> Vec<Want> {
        let mut effects = Vec::new();
        self.group.handle(event, at(self.now), &mut effects);
        short(&effects)
    }

    fn hold(&mut self, node: u8, layers: LayerRange) -> Vec<Want> {
        self.on(Event::ShardReady { from: key(node), word: word(node, layers) })
    }

    fn fail(&mut self, node: u8, layers: LayerRange, failure: ShardFailure) -> Vec<Want> {
        self.on(Event::ShardFailed { from: key(node), word: ShardFailed { group: GROUP, layers, failure } })
    }

    fn link(&mut self, node: u8, epoch: u64) -> Vec<Want> {
        let word = ShardLinked { group: GROUP, epoch: Epoch::new(epoch) };
        self.on(Event::ShardLinked { from: key(node), word })
    }

    fn link_all(&mut self, nodes: &[u8]) -> Vec<Want> {
        let epoch = self.group.epoch().get();
        nodes.iter().flat_map(|node| self.link(*node, epoch)).collect()
    }

    fn lose(&mut self, node: u8, epoch: u64, neighbour: Neighbour) -> Vec<Want> {
        let word = ShardLost { group: GROUP, epoch: Epoch::new(epoch), neighbour };
        self.on(Event::ShardLost { from: key(node), word })
    }

    fn gone(&mut self, node: u8) -> Vec<Want> {
        self.on(Event::NodeGone(id(node)))
    }

    fn back(&mut self, node: u8) -> Vec<Want> {
        self.on(Event::NodeBack(id(node)))
    }

    fn after(&mut self, secs: u64) -> Vec<Want> {
        self.now += secs * 1000;
        self.on(Event::Tick)
    }
}

fn short(effects: &[Effect]) -> Vec<Want> {
    let number = |node: &ProviderId| (1..=u8::MAX).find(|number| id(*number) == *node).unwrap();
    let mut wants = Vec::new();
    for effect in effects {
        let want = match effect {
            Effect::Send { to, message } => match &**message {
                ToProvider::LoadShard(load) => Want::Load(number(to), load.layers),
                ToProvider::UnloadShard(_) => Want::Unload(number(to)),
                ToProvider::LinkShard(LinkShard { epoch, chain, .. }) => {
                    let nodes = chain.shards().iter().map(|shard| number(&shard.node.provider_id()));
                    Want::Link(epoch.get(), nodes.collect())
                }
                other => panic!("no word of a group: {other:?}"),
            },
            Effect::Ready { epoch, head, jobs, .. } => {
                Want::Ready(epoch.get(), number(&head.provider_id()), *jobs)
            }
            Effect::Broken { epoch } => Want::Broken(epoch.get()),
            Effect::AskForPlan { without } => Want::Ask(without.iter().map(number).collect()),
            Effect::Ended(end) => Want::Ended(*end),
        };
        wants.push(want);
    }
    wants.dedup(); // One LINK_SHARD for all.
    wants
}

#[test]
fn a_group_loads_then_links_then_is_ready() {
    let (mut rig, wants) = Rig::new(&plan(&[1, 2], &[], 1000));
    let (low, high) = (range(0, 6), range(6, 12));
    assert_eq!(wants, [Want::Load(1, low), Want::Load(2, high)]);
    assert_eq!(rig.hold(2, high), []);
    assert_eq!(rig.hold(1, low), [Want::Link(1, vec![1, 2])]);
    assert_eq!(rig.link(1, 1), []);
    assert_eq!(rig.link(1, 1), [], "said twice, counted once");
    assert_eq!(rig.link(2, 1), [Want::Ready(1, 1, Jobs::StartAnew)]);
    assert_eq!((rig.group.state(), rig.group.deadline()), (State::Ready, None));
}

#[test]
fn a_load_says_what_to_hold_and_where() {
    let mut effects = Vec::new();
    Group::new(GROUP, terms(), &plan(&[1, 2], &[], 1), at(0), &mut effects).unwrap();
    let Effect::Send { to, message } = &effects[1] else { panic!("{effects:?}") };
    let load = LoadShard {
        group: GROUP,
        model: terms().model,
        layers: range(6, 12),
        place: Place::new(1, 2).unwrap(),
        positions: TokenCount::new(4096),
        sessions: 4,
        near: Vec::new(),
    };
    assert_eq!((*to, &**message), (id(2), &ToProvider::LoadShard(load)));
}

#[test]
fn a_warm_spare_takes_the_place_at_once() {
    let mut rig = Rig::ready(&[(4, &[1]), (5, &[2])]);
    assert_eq!(rig.gone(2), [Want::Broken(1), Want::Link(2, vec![1, 4, 3])]);
    assert_eq!(rig.link_all(&[1, 4, 3]), [Want::Ready(2, 1, Jobs::GoOn)]);
    // Whom a neighbour accuses is replaced, too, though it is here.
    assert_eq!(rig.lose(4, 2, Neighbour::Down), [Want::Broken(2), Want::Link(3, vec![1, 4, 5])]);
}

#[test]
fn a_cold_spare_loads_when_none_is_warm() {
    let mut rig = Rig::ready(&[(4, &[0, 1])]);
    let (low, middle) = (range(0, 4), range(4, 8));
    assert_eq!(rig.group.warm_spares().collect::<Vec<_>>(), [(id(4), low)]);
    assert_eq!(rig.gone(2), [Want::Broken(1), Want::Unload(4), Want::Load(4, middle)]);
    assert_eq!(rig.hold(4, middle), [Want::Link(2, vec![1, 4, 3])]);
}

#[test]
fn a_plan_is_asked_for_when_nobody_can_step_in() {
    let mut rig = Rig::ready(&[]);
    assert_eq!(rig.gone(2), [Want::Broken(1), Want::Ask(vec![2])]);
    assert_eq!(rig.after(4), [], "patience");
    assert_eq!(rig.after(1), [Want::Ask(vec![2])]);
    let wants = rig.on(Event::Plan(plan(&[3, 1], &[], 10)));
    assert_eq!(
        wants,
        [Want::Unload(1), Want::Unload(3), Want::Load(3, range(0, 6)), Want::Load(1, range(6, 12))]
    );
    assert_eq!(rig.load_all(&wants), [Want::Link(2, vec![3, 1])]);
    assert_eq!(rig.link_all(&[1, 3]), [Want::Ready(2, 3, Jobs::StartAnew)]);
}

#[test]
fn a_node_that_comes_back_in_time_takes_its_place_again() {
    let mut rig = Rig::ready(&[]);
    rig.gone(2);
    assert_eq!(rig.back(2), [Want::Ask(vec![2])], "it rests yet");
    rig.after(9);
    assert_eq!(rig.after(1), [Want::Load(2, range(4, 8))]);
    assert_eq!(rig.hold(2, range(4, 8)), [Want::Link(2, vec![1, 2, 3])]);
}

#[test]
fn a_link_that_breaks_is_made_again_once() {
    let mut rig = Rig::ready(&[]);
    assert_eq!(rig.lose(1, 1, Neighbour::Down), [Want::Broken(1), Want::Link(2, vec![1, 2, 3])]);
    assert_eq!(rig.link_all(&[1, 2, 3]), [Want::Ready(2, 1, Jobs::GoOn)]);
    assert_eq!(rig.lose(1, 2, Neighbour::Down), [Want::Broken(2), Want::Ask(vec![2])]);
}

#[test]
fn words_of_another_epoch_or_group_change_nothing() {
    let mut rig = Rig::ready(&[(4, &[1])]);
    rig.gone(2);
    assert_eq!(rig.lose(3, 1, Neighbour::Up), []);
    assert_eq!(rig.lose(3, 3, Neighbour::Up), []);
    for node in [1, 3, 4] {
        assert_eq!(rig.link(node, 1), []);
    }
    let word = ShardLinked { group: GroupId::from_bits(8), epoch: Epoch::new(2) };
    for node in [1, 3, 4] {
        assert_eq!(rig.on(Event::ShardLinked { from: key(node), word }), []);
    }
    assert_eq!(rig.group.state(), State::Linking);
    assert_eq!(rig.link(2, 2), [], "who is not in the chain is not waited for");
    assert_eq!(rig.link_all(&[1, 3, 4]), [Want::Ready(2, 1, Jobs::GoOn)]);
}

#[test]
fn neighbours_that_there_are_none_of_are_not_lost() {
    let mut rig = Rig::ready(&[]);
    for (node, neighbour) in [(1, Neighbour::Up), (3, Neighbour::Down), (2, Neighbour::Results)] {
        assert_eq!(rig.lose(node, 1, neighbour), [], "{node} {neighbour:?}");
    }
    let mut alone = Rig::new(&plan(&[1], &[], 1)).0;
    alone.hold(1, range(0, 12));
    alone.link(1, 1);
    assert_eq!(alone.lose(1, 1, Neighbour::Results), []);
}

#[test]
fn results_are_between_the_last_and_the_head() {
    let mut rig = Rig::ready(&[(4, &[0]), (5, &[2])]);
    assert_eq!(rig.lose(1, 1, Neighbour::Results)[1], Want::Link(2, vec![1, 2, 5]));
    assert_eq!(rig.lose(5, 2, Neighbour::Results)[0], Want::Link(3, vec![4, 2, 5]));
}

#[test]
fn the_heads_part_moves_with_its_spare_and_jobs_start_anew() {
    let mut rig = Rig::ready(&[(4, &[0])]);
    assert_eq!(rig.gone(1), [Want::Broken(1), Want::Link(2, vec![4, 2, 3])]);
    assert_eq!(rig.link_all(&[2, 3, 4]), [Want::Ready(2, 4, Jobs::StartAnew)]);
}

#[test]
fn a_head_that_began_anew_knows_of_no_jobs() {
    let mut rig = Rig::ready(&[]);
    rig.back(1);
    rig.after(10);
    assert_eq!(rig.hold(1, range(0, 4)), [Want::Link(2, vec![1, 2, 3])]);
    assert_eq!(rig.link_all(&[1, 2, 3]), [Want::Ready(2, 1, Jobs::StartAnew)]);

    let mut rig = Rig::ready(&[]);
    let addresses = Addresses::new(vec!["192.0.2.1:7001".to_owned()]).unwrap();
    let word = ShardReady { addresses, ..word(1, range(0, 4)) };
    rig.on(Event::ShardReady { from: key(1), word });
    rig.lose(2, 1, Neighbour::Up);
    assert_eq!(rig.link_all(&[1, 2, 3]), [Want::Ready(2, 1, Jobs::StartAnew)], "its worker did");
}

#[test]
fn several_losses_are_mended_one_after_the_other() {
    let mut rig = Rig::ready(&[(4, &[0, 1, 2]), (5, &[0, 1, 2]), (6, &[0, 1, 2])]);
    let [first, second] = [rig.gone(3), rig.gone(1)];
    assert!(matches!(&first[..], [Want::Broken(1), Want::Link(2, _)]), "{first:?}");
    assert!(matches!(&second[..], [Want::Link(3, _)]), "{second:?}");
}

#[test]
fn spares_hold_what_is_covered_least() {
    let (rig, wants) = Rig::new(&plan(&[1, 2, 3], &[(4, &[0, 1, 2]), (5, &[1]), (6, &[0, 1, 2])], 1000));
    let spares: Vec<_> = wants.into_iter().filter(|want| matches!(want, Want::Load(4.., _))).collect();
    assert_eq!(
        spares,
        [Want::Load(5, range(4, 8)), Want::Load(4, range(0, 4)), Want::Load(6, range(8, 12))],
        "who can do but one thing does it"
    );
    assert_eq!(rig.group.warm_spares().count(), 0, "they only load");
    let (_, wants) = Rig::new(&plan(&[1], &[(4, &[0]), (5, &[0])], 1000));
    assert_eq!(wants.len(), 2, "one spare for a stage is enough");
}

#[test]
fn a_spare_that_is_quicker_than_the_holder_takes_its_place() {
    let (mut rig, _) = Rig::new(&plan(&[1, 2], &[(4, &[1])], 1000));
    rig.hold(1, range(0, 6));
    assert_eq!(rig.hold(4, range(6, 12)), [Want::Link(1, vec![1, 4])]);
    assert_eq!(rig.hold(2, range(6, 12)), [], "and that one is the spare now");
    assert_eq!(rig.group.warm_spares().collect::<Vec<_>>(), [(id(2), range(6, 12))]);
}

#[test]
fn a_node_that_flaps_rests_longer_each_time() {
    let mut rig = Rig::ready(&[(4, &[1])]);
    let mut rests = Vec::new();
    for _ in 0..4 {
        rig.gone(4);
        rig.back(4);
        let mut secs = 0;
        while secs < 1000 && !rig.after(1).contains(&Want::Load(4, range(4, 8))) {
            secs += 1;
        }
        rests.push(secs + 1);
    }
    assert_eq!(rests, [10, 20, 40, 80]);
    rig.after(700);
    rig.gone(4);
    rig.back(4);
    assert_eq!(rig.after(10), [Want::Load(4, range(4, 8))], "all is forgiven");
}

#[test]
fn a_group_that_breaks_again_and_again_ends() {
    let spares: Vec<(u8, &[usize])> = (10..20).map(|node| (node, &[1_usize][..])).collect();
    let mut rig = Rig::ready(&spares);
    for epoch in 1..20 {
        rig.now += 100;
        let from_below = epoch % 2 == 0;
        let (node, side) = if from_below { (3, Neighbour::Up) } else { (1, Neighbour::Down) };
        let wants = rig.lose(node, epoch, side);
        // A spare loads meanwhile, and quickly.
        let more = rig.load_all(&wants);
        if let Some(Want::Ended(end)) = wants.iter().chain(&more).find(|want| matches!(want, Want::Ended(_)))
        {
            assert_eq!((*end, end.is_retryable(), epoch), (End::Unstable, true, 7));
            return;
        }
    }
    panic!("it goes on for ever");
}

#[test]
fn a_group_outlives_many_that_are_really_gone() {
    let spares: Vec<(u8, &[usize])> = (10..30).map(|node| (node, &[1_usize][..])).collect();
    let mut rig = Rig::ready(&spares);
    for death in 0..20 {
        let holders: Vec<ProviderId> = rig.group.holders().map(|(node, _)| node).collect();
        let lost = (1..40).find(|node| id(*node) == holders[1]).unwrap();
        let mut wants = Vec::new();
        if death % 2 == 0 {
            wants.extend(rig.lose(1, rig.group.epoch().get(), Neighbour::Down));
        }
        wants.extend(rig.gone(lost));
        let more = rig.load_all(&wants);
        rig.load_all(&more);
        let next = rig.group.holders().map(|(node, _)| node).collect::<Vec<_>>()[1];
        let next = (1..40).find(|node| id(*node) == next).unwrap();
        let ready = rig.link_all(&[1, next, 3]);
        assert!(matches!(ready.last(), Some(Want::Ready(..))), "death {death}: {ready:?}");
    }
}

#[test]
fn a_failure_that_time_does_not_mend_is_not_tried_again() {
    let (mut rig, _) = Rig::new(&plan(&[1, 2], &[(4, &[1])], 1000));
    let wants = rig.fail(2, range(6, 12), ShardFailure::OutOfMemory);
    assert_eq!(wants, [], "the spare loads already, and becomes the holder");
    assert_eq!(rig.fail(4, range(6, 12), ShardFailure::Internal), [Want::Ask(vec![2, 4])]);
    rig.hold(1, range(0, 6));
    rig.after(5);
    assert_eq!(rig.after(5), [Want::Load(4, range(6, 12))], "only the other one is tried again");
    assert_eq!(rig.hold(4, range(6, 12)), [Want::Link(1, vec![1, 4])]);
}

#[test]
fn a_shard_of_another_make_is_refused() {
    let (mut rig, _) = Rig::new(&plan(&[1, 2, 3], &[(4, &[0])], 1000));
    let other = ShardReady { digest: ModelDigest::from_bytes([2; 32]), ..word(1, range(0, 4)) };
    rig.on(Event::ShardReady { from: key(1), word: other });
    rig.hold(2, range(4, 8));
    assert_eq!(rig.hold(3, range(8, 12)), [Want::Unload(1)], "two against one");
    assert_eq!(rig.hold(4, range(0, 4)), [Want::Link(1, vec![4, 2, 3])]);

    let mut rig = Rig::ready(&[(4, &[0])]);
    let other = ShardReady { width: 65, ..word(4, range(0, 4)) };
    assert_eq!(rig.on(Event::ShardReady { from: key(4), word: other }), [Want::Unload(4)]);
    let other = ShardReady { dtype: Dtype::F16, ..word(3, range(8, 12)) };
    let wants = rig.on(Event::ShardReady { from: key(3), word: other });
    assert_eq!(wants, [Want::Unload(3), Want::Broken(1), Want::Ask(vec![3, 4])]);
}

#[test]
fn a_little_better_plan_is_no_reason_to_change() {
    let mut rig = Rig::ready(&[]);
    assert_eq!(rig.on(Event::Plan(plan(&[4, 5], &[], 1199))), []);
    assert_eq!(
        rig.on(Event::Plan(plan(&[1, 2, 3], &[(9, &[2])], 1000))),
        [Want::Load(9, range(8, 12))],
        "a spare"
    );
    assert_eq!(rig.on(Event::Plan(plan(&[4, 5], &[], 1200))).len(), 2);
}

#[test]
fn a_much_better_plan_is_loaded_beside_and_takes_over() {
    let mut rig = Rig::ready(&[]);
    let wants = rig.on(Event::Plan(plan(&[1, 4], &[], 2000)));
    assert_eq!(wants, [Want::Load(1, range(0, 6)), Want::Load(4, range(6, 12))]);
    assert_eq!(rig.group.state(), State::Ready, "the old one runs on");
    rig.hold(4, range(6, 12));
    assert_eq!(rig.hold(1, range(0, 6)), [Want::Broken(1), Want::Link(2, vec![1, 4])]);
    rig.link(1, 2);
    assert_eq!(
        rig.link(4, 2),
        [Want::Ready(2, 1, Jobs::GoOn), Want::Unload(1), Want::Unload(2), Want::Unload(3)],
        "only now the old layers go"
    );
}

#[test]
fn a_better_plan_that_fails_leaves_what_runs_alone() {
    let mut rig = Rig::ready(&[]);
    let better = Event::Plan(plan(&[1, 4], &[], 2000));
    rig.on(better.clone());
    assert_eq!(rig.fail(4, range(6, 12), ShardFailure::Unavailable), [Want::Unload(1)]);
    assert_eq!(rig.group.state(), State::Ready);
    assert_eq!(rig.after(599), []);
    assert_eq!(rig.on(better.clone()), [], "not so soon again");
    rig.after(1);
    let wants = rig.on(better);
    rig.load_all(&wants);
    assert_eq!(rig.group.epoch(), Epoch::new(2));
    assert_eq!(rig.gone(4), [Want::Unload(1), Want::Link(3, vec![1, 2, 3])], "back to the old one");
    assert_eq!(rig.link_all(&[1, 2, 3]), [Want::Ready(3, 1, Jobs::GoOn)]);
}

#[test]
fn who_says_nothing_is_not_waited_for_for_ever() {
    let (mut rig, _) = Rig::new(&plan(&[1, 2], &[(4, &[1])], 1000));
    rig.hold(1, range(0, 6));
    rig.after(119);
    assert_eq!(rig.group.deadline(), Some(at(120_000)));
    assert_eq!(rig.after(1), [Want::Unload(2), Want::Unload(4), Want::Ask(vec![2, 4])]);
    assert_eq!(rig.hold(2, range(6, 12)), [Want::Unload(2)], "too late");
    assert_eq!(rig.after(10), [Want::Load(2, range(6, 12)), Want::Load(4, range(6, 12))]);

    let (mut rig, wants) = Rig::new(&plan(&[1, 2], &[], 1000));
    rig.load_all(&wants);
    rig.link(1, 1);
    rig.after(14);
    assert_eq!(rig.group.state(), State::Linking);
    assert_eq!(rig.after(1), [Want::Link(2, vec![1, 2])], "who did not link gets a second chance");
    rig.link(1, 2);
    assert_eq!(rig.after(15), [Want::Ask(vec![2])], "and no third");
}

#[test]
fn a_group_without_nodes_ends_with_the_reason() {
    for (failure, retryable) in [(ShardFailure::Internal, true), (ShardFailure::UnknownModel, false)] {
        let (mut rig, _) = Rig::new(&plan(&[1, 2], &[], 1000));
        rig.fail(2, range(6, 12), failure);
        rig.gone(2);
        rig.after(59);
        let end = End::NoPlan { failure: Some(failure) };
        assert_eq!(rig.after(1), [Want::Unload(1), Want::Ended(end)]);
        assert_eq!(end.is_retryable(), retryable);
    }
}

#[test]
fn a_group_that_is_never_ready_ends() {
    let (mut rig, _) = Rig::new(&plan(&[1], &[], 1000));
    for _ in 0..9 {
        rig.after(60);
        rig.fail(1, range(0, 12), ShardFailure::Internal);
        let better = plan(&[u8::try_from(rig.now / 60_000).unwrap() + 10], &[], 1);
        rig.on(Event::Plan(better));
    }
    let wants = rig.after(60);
    assert_eq!(wants.last(), Some(&Want::Ended(End::TooSlow)), "{wants:?}");
    assert_eq!(rig.group.deadline(), None);
}

#[test]
fn a_retired_group_says_so_and_then_nothing() {
    let mut rig = Rig::ready(&[(4, &[0])]);
    let wants = rig.on(Event::Retire);
    assert_eq!(wants[..4], [1, 2, 3, 4].map(Want::Unload));
    assert_eq!(wants[4..], [Want::Ended(End::Retired)]);
    assert_eq!(rig.on(Event::Retire), []);
    assert_eq!(rig.gone(1), []);
    assert_eq!(rig.after(1000), []);
    assert_eq!(rig.group.state(), State::Ended(End::Retired));
}

#[test]
fn what_is_no_plan_makes_no_group() {
    let good = plan(&[1, 2, 3], &[], 1);
    let mut gap = good.clone();
    gap.stages.remove(1);
    let mut short = good.clone();
    short.stages.pop();
    let mut twice = good.clone();
    twice.stages[2].node = id(1);
    for bad in [gap, short, twice, Plan { stages: Vec::new(), ..good }] {
        let made = Group::new(GROUP, terms(), &bad, at(0), &mut Vec::new());
        assert!(matches!(made, Err(Misplan)), "{bad}");
    }
}

#[test]
fn a_node_that_came_later_can_step_in() {
    let mut rig = Rig::ready(&[]);
    let spare = |stages: &[usize]| Event::Spare(Spare { node: id(4), stages: stages.to_vec() });
    assert_eq!(rig.on(spare(&[3])), [], "there is no such stage");
    assert_eq!(rig.on(spare(&[1])), [Want::Load(4, range(4, 8))]);
    rig.hold(4, range(4, 8));
    assert_eq!(rig.gone(2), [Want::Broken(1), Want::Link(2, vec![1, 4, 3])]);
    rig.gone(4);
    rig.after(20);
    assert_eq!(rig.group.state(), State::Planning);
    assert_eq!(rig.on(Event::Spare(Spare { node: id(5), stages: vec![1] })), [Want::Load(5, range(4, 8))]);
}

#[test]
fn who_loses_one_neighbour_after_the_other_is_at_fault() {
    let mut rig = Rig::ready(&[(4, &[1]), (5, &[0])]);
    assert_eq!(rig.lose(1, 1, Neighbour::Down)[1], Want::Link(2, vec![1, 4, 3]));
    assert_eq!(rig.lose(1, 2, Neighbour::Down)[0], Want::Link(3, vec![5, 4, 3]), "its line is bad");
    // A good while later it is the other one again.
    let mut rig = Rig::ready(&[(4, &[1]), (5, &[0])]);
    rig.lose(1, 1, Neighbour::Down);
    rig.link_all(&[1, 4, 3]);
    rig.after(60);
    assert_eq!(rig.lose(1, 2, Neighbour::Down)[1], Want::Link(3, vec![1, 2, 3]));
}

#[test]
fn who_tells_of_some_that_are_really_gone_is_not_at_fault() {
    let mut rig = Rig::ready(&[(4, &[1]), (5, &[2]), (6, &[2])]);
    for (neighbour, lost, chain) in [
        (Neighbour::Down, 2, [1, 4, 3]),
        (Neighbour::Results, 3, [1, 4, 5]),
        (Neighbour::Results, 5, [1, 4, 6]),
    ] {
        // The head hears of each first, and the coordinator a moment later.
        let told = rig.lose(1, rig.group.epoch().get(), neighbour);
        rig.load_all(&told);
        let wants = rig.gone(lost);
        rig.load_all(&wants);
        let ready = rig.link_all(&chain);
        assert!(matches!(ready.last(), Some(Want::Ready(_, 1, Jobs::GoOn))), "{lost} is gone: {ready:?}");
    }
    // It tells of both before the coordinator sees either.
    let mut rig = Rig::ready(&[(4, &[1]), (5, &[2])]);
    rig.lose(1, 1, Neighbour::Down);
    rig.link_all(&[1, 4, 3]);
    rig.lose(1, 2, Neighbour::Results);
    assert!(rig.group.members[&id(1)].rests(at(rig.now)), "so far its line looks bad");
    rig.gone(3);
    assert!(!rig.group.members[&id(1)].rests(at(rig.now)), "it was not");
}

#[test]
fn nodes_of_plans_of_before_are_forgotten() {
    let mut rig = Rig::ready(&[]);
    rig.gone(2);
    for round in 0..40 {
        let nodes = [10 + 2 * round, 11 + 2 * round];
        rig.on(Event::Plan(plan(&nodes, &[], 1)));
        rig.gone(nodes[0]);
        rig.on(Event::Tick);
    }
    assert!(rig.group.members.len() < 10, "{}", rig.group.members.len());
}
