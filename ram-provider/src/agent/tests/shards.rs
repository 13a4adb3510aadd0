//! What the agent does for groups: hands orders on, tells what came of them, and lets go of what nobody asks for.

use ram_core::layers::LayerRange;
use ram_core::units::ByteRate;
use ram_proto::control::shard::{
    Addresses, Chain, ChainShard, Lending, LinkShard, LoadShard, Neighbour, Place, ShardFailed, ShardFailure,
    ShardLinked, ShardLost, ShardReady, ShardReport, UnloadShard,
};
use ram_proto::frame::ModelDigest;
use ram_proto::tensor::Dtype;

use super::*;

const BIG: &str = "mlx-community/big";
const GROUP: GroupId = GroupId::from_bits(7);

/// A rig that lends, and is registered.
fn lender() -> Rig {
    let mut rig = started();
    enter(&mut rig);
    rig
}

/// A rig that lends, and has just begun.
fn started() -> Rig {
    let mut rig = Rig::new();
    assert_eq!(rig.on(Event::ShardReport(report(1))), [Effect::Connect]);
    rig
}

/// Has a rig connect again, and register.
fn stand(rig: &mut Rig) {
    rig.tick_until(|effects| effects.contains(&Effect::Connect));
    enter(rig);
}

/// Has a rig that connects register; what follows from it.
fn enter(rig: &mut Rig) -> Vec<Effect> {
    rig.on(Event::LinkUp);
    rig.say(challenge(9));
    let effects = rig.say(registered());
    assert!(
        matches!(effects[..], [Effect::Note(_), Effect::Send(ToCoordinator::ShardReport(_))]),
        "{effects:?}"
    );
    effects
}

fn report(gib: u64) -> ShardReport {
    let lends = Lending { memory: Bytes::from_gib(gib), weights_per_s: ByteRate::new(1) };
    ShardReport { lends: Some(lends), ..ShardReport::default() }
}

fn layers(first: u16, end: u16) -> LayerRange {
    LayerRange::new(first, end).unwrap()
}

fn load(group: GroupId, of: LayerRange) -> LoadShard {
    LoadShard {
        group,
        model: BIG.parse().unwrap(),
        layers: of,
        place: Place::new(u16::from(of.first() > 0), 2).unwrap(),
        positions: TokenCount::new(4096),
        sessions: 2,
        near: Vec::new(),
    }
}

fn ready(group: GroupId, of: LayerRange) -> ShardReady {
    ShardReady {
        group,
        layers: of,
        addresses: addresses(),
        digest: ModelDigest::from_bytes([1; 32]),
        width: 64,
        dtype: Dtype::F32,
        kv_free: TokenCount::new(4096),
    }
}

fn addresses() -> Addresses {
    Addresses::new(vec!["a:1".to_owned()]).unwrap()
}

fn link() -> LinkShard {
    let own = NodeKey::from_bytes(NodeIdentity::from_seeds([1; 32], [2; 32]).node_public());
    let shard = |node, of| ChainShard { node, addresses: addresses(), layers: of };
    let shards = vec![shard(own, layers(0, 4)), shard(NodeKey::from_bytes([9; 32]), layers(4, 8))];
    LinkShard { group: GROUP, epoch: Epoch::new(1), chain: Chain::new(shards).unwrap() }
}

fn failed_shard(of: LayerRange, failure: ShardFailure) -> Effect {
    Effect::Send(ToCoordinator::ShardFailed(ShardFailed { group: GROUP, layers: of, failure }))
}

fn let_go(group: GroupId, of: LayerRange) -> Effect {
    Effect::Shard(ShardOrder::Unload(UnloadShard { group, layers: Some(of) }))
}

/// Has a rig hold layers.
fn hold(rig: &mut Rig, group: GroupId, of: LayerRange) {
    assert_eq!(
        rig.say(ToProvider::LoadShard(load(group, of))),
        [Effect::Shard(ShardOrder::Load(load(group, of)))]
    );
    let told = rig.on(Event::Shard(ShardWord::Ready(ready(group, of))));
    assert_eq!(told, [Effect::Send(ToCoordinator::ShardReady(ready(group, of)))]);
}

fn run_of(number: u128, model: &str, group: GroupId) -> ToProvider {
    let ToProvider::Run { attempt, job, .. } = run(number, model) else { unreachable!() };
    ToProvider::Run { attempt, job, group: Some(group) }
}

#[test]
fn what_is_lent_is_told_at_once_and_with_each_beat() {
    let mut rig = started();
    let told = Effect::Send(ToCoordinator::ShardReport(report(1)));
    assert_eq!(enter(&mut rig)[1], told);
    assert_eq!(rig.on(Event::ShardReport(report(2))), []);
    let effects = rig.tick_until(|effects| !effects.is_empty());
    let told = Effect::Send(ToCoordinator::ShardReport(report(2)));
    assert!(matches!(&effects[..], [Effect::Send(ToCoordinator::Heartbeat { .. }), last] if *last == told));
}

#[test]
fn a_coordinator_that_knows_no_shards_is_told_nothing_of_them() {
    let mut rig = started();
    rig.on(Event::LinkUp);
    rig.say(challenge(9));
    let ToProvider::Registered { provider, epoch, heartbeat_ms, .. } = registered() else { unreachable!() };
    let capabilities = serde_json::from_str(r#"["chat.v1"]"#).unwrap();
    let effects = rig.say(ToProvider::Registered { provider, epoch, heartbeat_ms, capabilities });
    assert!(matches!(effects[..], [Effect::Note(_)]), "{effects:?}");
    let effects = rig.tick_until(|effects| !effects.is_empty());
    assert!(matches!(effects[..], [Effect::Send(ToCoordinator::Heartbeat { .. })]), "{effects:?}");
}

#[test]
fn a_node_that_lends_nothing_says_so() {
    let mut rig = Rig::standing();
    let forbidden = [failed_shard(layers(0, 4), ShardFailure::Forbidden)];
    assert_eq!(rig.say(ToProvider::LoadShard(load(GROUP, layers(0, 4)))), forbidden);
    assert_eq!(rig.say(ToProvider::LinkShard(link())), forbidden);
    assert_eq!(rig.say(ToProvider::UnloadShard(UnloadShard { group: GROUP, layers: None })), []);
}

#[test]
fn orders_are_handed_on_and_words_are_said() {
    let mut rig = lender();
    hold(&mut rig, GROUP, layers(0, 4));
    assert_eq!(rig.say(ToProvider::LinkShard(link())), [Effect::Shard(ShardOrder::Link(link()))]);
    let epoch = Epoch::new(1);
    let linked = ShardLinked { group: GROUP, epoch };
    let told = rig.on(Event::Shard(ShardWord::Linked(linked)));
    assert_eq!(told, [Effect::Send(ToCoordinator::ShardLinked(linked))]);
    let lost = ShardLost { group: GROUP, epoch, neighbour: Neighbour::Down };
    assert_eq!(rig.on(Event::Shard(ShardWord::Lost(lost))), [Effect::Send(ToCoordinator::ShardLost(lost))]);
    let unload = UnloadShard { group: GROUP, layers: None };
    assert_eq!(rig.say(ToProvider::UnloadShard(unload.clone())), [Effect::Shard(ShardOrder::Unload(unload))]);
    assert_eq!(rig.on(Event::Shard(ShardWord::Lost(lost))), [], "nobody waits for it any more");
    assert_eq!(rig.on(Event::Shard(ShardWord::Ready(ready(GROUP, layers(0, 4))))), []);
}

#[test]
fn the_head_answers_for_its_group_and_for_no_other() {
    let mut rig = lender();
    assert_eq!(rig.say(run_of(1, BIG, GROUP)), [failed(1, Failure::ModelUnavailable)], "nothing is held");
    hold(&mut rig, GROUP, layers(4, 8));
    assert_eq!(rig.say(run_of(2, BIG, GROUP)), [failed(2, Failure::ModelUnavailable)], "it is not the head");
    rig.say(ToProvider::LoadShard(load(GROUP, layers(0, 4))));
    assert_eq!(rig.say(run_of(3, BIG, GROUP)), [failed(3, Failure::ModelUnavailable)], "it loads yet");
    rig.on(Event::Shard(ShardWord::Ready(ready(GROUP, layers(0, 4)))));
    assert_eq!(rig.say(run_of(4, MODEL, GROUP)), [failed(4, Failure::ModelUnavailable)], "another model");
    assert_eq!(rig.say(run(5, BIG)), [failed(5, Failure::ModelUnavailable)], "not whole");
    for number in 6..9 {
        let effects = rig.say(run_of(number, BIG, GROUP)); // two sessions and a place to wait
        assert!(matches!(effects[..], [Effect::Generate { group: Some(GROUP), .. }]), "{effects:?}");
    }
    assert_eq!(rig.say(run_of(9, BIG, GROUP)), [failed(9, Failure::Overloaded)]);
    assert_eq!(rig.agent.load().running, 0, "whole models are idle");
    rig.run(10);
    let failure = ShardFailure::Internal;
    let lost = ShardFailed { group: GROUP, layers: layers(0, 4), failure };
    rig.on(Event::Shard(ShardWord::Failed(lost)));
    assert_eq!(rig.say(run_of(11, BIG, GROUP)), [failed(11, Failure::ModelUnavailable)]);
}

#[test]
fn shards_outlive_a_connection_for_ten_minutes() {
    let mut rig = lender();
    hold(&mut rig, GROUP, layers(0, 4));
    let lost = rig.now;
    rig.on(Event::LinkDown);
    assert_eq!(rig.on(Event::Shard(ShardWord::Ready(ready(GROUP, layers(0, 4))))), [], "nobody hears it");
    let mut effects = Vec::new();
    while rig.now.since(lost) < AWAY_MAX {
        assert_eq!(effects.iter().find(|effect| matches!(effect, Effect::Shard(_))), None);
        rig.now = rig.agent.wake_at().unwrap();
        effects = rig.on(Event::Wake);
        if effects.contains(&Effect::Connect) {
            rig.on(Event::LinkDown);
        }
    }
    assert!(effects.contains(&let_go(GROUP, layers(0, 4))), "{effects:?}");
}

#[test]
fn who_comes_back_says_again_that_it_is_ready_and_lets_go_of_what_nobody_asks_for() {
    let mut rig = lender();
    let other = GroupId::from_bits(8);
    hold(&mut rig, GROUP, layers(0, 4));
    hold(&mut rig, GROUP, layers(0, 2));
    hold(&mut rig, other, layers(4, 8));
    rig.on(Event::LinkDown);
    stand(&mut rig);
    let stood = rig.now;
    hold(&mut rig, GROUP, layers(0, 4));
    let is_order = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Shard(_)));
    let effects = rig.tick_until(is_order);
    assert_eq!(rig.now.since(stood), UNASKED_MAX);
    let orders: Vec<_> =
        effects.into_iter().filter(|effect| is_order(std::slice::from_ref(effect))).collect();
    assert_eq!(orders, [let_go(GROUP, layers(0, 2)), let_go(other, layers(4, 8))]);
    let effects = rig.say(run_of(1, BIG, GROUP));
    assert!(matches!(effects[..], [Effect::Generate { .. }]), "what was asked for again serves");
}

#[test]
fn a_node_that_leaves_begins_no_load() {
    let mut rig = lender();
    rig.run(1);
    rig.on(Event::DrainRequested);
    let busy = [failed_shard(layers(0, 4), ShardFailure::Busy)];
    assert_eq!(rig.say(ToProvider::LoadShard(load(GROUP, layers(0, 4)))), busy);
}
