//! Bad nights of a group, under seeds: nodes die, come back, load slowly, fail, answer late, twice or never, and lose
//! each other. A witness holds every effect against what it has seen.

use proptest::prelude::*;

use super::*;

/// When all nodes are well again, in milliseconds.
const CALM: u64 = 300_000;
/// How long a group may take from then on: its longest wait to be ready, with room for the last loss.
const BOUND: u64 = 640_000;

/// How a node does what it is told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Good,
    /// Loads take this many seconds.
    Slow(u64),
    /// Says everything twice, the second time late.
    Twice,
    /// Loads, and does not say so.
    Mute,
    /// Loads, and never links.
    Deaf,
    /// Links, and loses its neighbours some seconds later; each of the two says that it was the other.
    BadLine,
    /// Does not load.
    Fails(ShardFailure),
    /// Its files are other ones.
    OfAnotherMake,
}

/// Something that goes wrong, or right again.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Die,
    Rise,
    /// The link to the next shard breaks; both live.
    Break,
    Behave(Manner),
    /// A plan comes unasked.
    Offer,
}

/// Something that is due.
#[derive(Clone, Debug)]
enum Due {
    Tick,
    Fault(u8, Fault),
    /// What a node said; dropped when its session is not the one that the coordinator knows.
    Heard {
        node: u8,
        life: u32,
        event: Event,
    },
    /// The coordinator sees that a node's connection is closed.
    SeenDead {
        node: u8,
        life: u32,
    },
    SeenAlive {
        node: u8,
        life: u32,
    },
    Arrives {
        node: u8,
        life: u32,
        message: Box<ToProvider>,
    },
    Loaded {
        node: u8,
        life: u32,
        layers: LayerRange,
    },
    Dialled {
        node: u8,
        life: u32,
        epoch: u64,
    },
    Planned(BTreeSet<ProviderId>),
}

#[derive(Clone, Debug)]
struct Node {
    alive: bool,
    life: u32,
    /// The life that the coordinator has a connection with.
    seen: Option<u32>,
    manner: Manner,
    held: BTreeSet<LayerRange>,
    epoch: u64,
    chain: Vec<u8>,
}

/// What the effects so far allow.
#[derive(Debug, Default)]
struct Witness {
    /// What each node was asked to hold, and whether it said that it does.
    asked: BTreeMap<(u8, LayerRange), bool>,
    epoch: u64,
    chain: Vec<u8>,
    linked: BTreeSet<u8>,
    ready: Option<u64>,
    /// The last head, while it knows its jobs.
    head: Option<u8>,
    ended: Option<End>,
    times_ready: u32,
}

struct Night {
    now: u64,
    chance: u64,
    due: BTreeMap<(u64, u64), Due>,
    count: u64,
    nodes: BTreeMap<u8, Node>,
    group: Group,
    /// Fewest nodes that the model fits on.
    shards: usize,
    witness: Witness,
}

impl Night {
    fn new(nodes: u8, shards: usize, seed: u64) -> Self {
        let node = Node {
            alive: true,
            life: 0,
            seen: Some(0),
            manner: Manner::Good,
            held: BTreeSet::new(),
            epoch: 0,
            chain: Vec::new(),
        };
        let all: Vec<usize> = (0..shards).collect();
        let spares: Vec<_> =
            (u8::try_from(shards).unwrap() + 1..=nodes).map(|node| (node, &all[..])).collect();
        let holders: Vec<u8> = (1..=u8::try_from(shards).unwrap()).collect();
        let mut effects = Vec::new();
        let first = plan(&holders, &spares, 1000);
        let group = Group::new(GROUP, terms(), &first, at(0), &mut effects).unwrap();
        let mut night = Self {
            now: 0,
            chance: seed,
            due: BTreeMap::new(),
            count: 0,
            nodes: (1..=nodes).map(|number| (number, node.clone())).collect(),
            group,
            shards,
            witness: Witness::default(),
        };
        night.see(&effects);
        night.put(1000, Due::Tick);
        night
    }

    /// A number below `bound` (splitmix64).
    fn below(&mut self, bound: u64) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn put(&mut self, wait: u64, due: Due) {
        self.count += 1;
        self.due.insert((self.now + wait, self.count), due);
    }

    /// Plays until this time.
    fn play(&mut self, until: u64) {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((now, _), due) = entry.remove_entry();
            self.now = now;
            self.happen(due);
        }
        self.now = until;
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Tick => {
                self.tell(Event::Tick);
                if let Some(deadline) = self.group.deadline() {
                    assert!(deadline > at(self.now), "what was due is done");
                }
                // In quiet times less is to be seen.
                let wait = match self.group.state() {
                    State::Ready => 5000,
                    State::Ended(_) => 60_000,
                    State::Loading | State::Planning | State::Linking => 1000,
                };
                self.put(wait, Due::Tick);
            }
            Due::Fault(node, fault) => self.fault(node, fault),
            Due::Heard { node, life, event } => {
                if self.nodes[&node].seen == Some(life) {
                    self.tell(event);
                }
            }
            Due::SeenDead { node, life } => {
                let known = self.nodes.get_mut(&node).unwrap();
                if known.seen == Some(life) {
                    known.seen = None;
                    self.tell(Event::NodeGone(id(node)));
                }
            }
            Due::SeenAlive { node, life } => {
                let known = self.nodes.get_mut(&node).unwrap();
                if known.alive && known.life == life {
                    known.seen = Some(life);
                    self.tell(Event::NodeBack(id(node)));
                }
            }
            Due::Arrives { node, life, message } => {
                if self.nodes[&node].alive && self.nodes[&node].life == life {
                    self.obey(node, &message);
                }
            }
            Due::Loaded { node, life, layers } => self.loaded(node, life, layers),
            Due::Dialled { node, life, epoch } => self.dialled(node, life, epoch),
            Due::Planned(without) => self.offer(&without),
        }
    }

    // ---- the nodes ----

    fn fault(&mut self, number: u8, fault: Fault) {
        let delay = self.below(25_000);
        let node = self.nodes.get_mut(&number).unwrap();
        let life = node.life;
        match fault {
            Fault::Die if node.alive => {
                node.alive = false;
                let (epoch, chain) = (node.epoch, std::mem::take(&mut node.chain));
                self.put(delay, Due::SeenDead { node: number, life });
                for (side, other) in neighbours(&chain, number) {
                    let wait = self.below(3000);
                    self.say_lost(wait, other, side, epoch);
                }
            }
            Fault::Rise if !node.alive => {
                *node = Node {
                    alive: true,
                    life: life + 1,
                    held: BTreeSet::new(),
                    epoch: 0,
                    chain: Vec::new(),
                    ..node.clone()
                };
                self.put(delay / 10, Due::SeenAlive { node: number, life: life + 1 });
            }
            Fault::Break => {
                let (epoch, chain) = (node.epoch, node.chain.clone());
                let next = chain.iter().skip_while(|other| **other != number).nth(1).copied();
                if let Some(next) = next {
                    let (first, second) = (self.below(3000), self.below(3000));
                    self.say_lost(first, number, Neighbour::Down, epoch);
                    self.say_lost(second, next, Neighbour::Up, epoch);
                }
            }
            Fault::Behave(manner) => node.manner = manner,
            Fault::Offer => self.offer(&BTreeSet::new()),
            Fault::Die | Fault::Rise => {}
        }
    }

    fn say(&mut self, wait: u64, number: u8, event: Event) {
        let Node { life, manner, .. } = self.nodes[&number];
        if manner == Manner::Twice {
            let late = wait + self.below(20_000);
            self.put(late, Due::Heard { node: number, life, event: event.clone() });
        }
        self.put(wait, Due::Heard { node: number, life, event });
    }

    fn say_lost(&mut self, wait: u64, from: u8, neighbour: Neighbour, epoch: u64) {
        if self.nodes[&from].alive && self.nodes[&from].epoch == epoch {
            let word = ShardLost { group: GROUP, epoch: Epoch::new(epoch), neighbour };
            self.say(wait, from, Event::ShardLost { from: key(from), word });
        }
    }

    fn obey(&mut self, number: u8, message: &ToProvider) {
        let quick = self.below(15_000);
        let node = self.nodes.get_mut(&number).unwrap();
        let life = node.life;
        match message {
            ToProvider::LoadShard(LoadShard { layers, .. }) => {
                let wait = match node.manner {
                    Manner::Slow(secs) => secs * 1000,
                    _ if node.held.contains(layers) => 10,
                    _ => quick,
                };
                self.put(wait, Due::Loaded { node: number, life, layers: *layers });
            }
            ToProvider::LinkShard(LinkShard { epoch, chain, .. }) => {
                let numbers: Vec<u8> = chain.shards().iter().map(|shard| shard.node.as_bytes()[0]).collect();
                node.epoch = epoch.get();
                node.chain = numbers;
                let wait = 10 + quick / 30;
                self.put(wait, Due::Dialled { node: number, life, epoch: epoch.get() });
            }
            ToProvider::UnloadShard(UnloadShard { layers: Some(layers), .. }) => {
                node.held.remove(layers);
            }
            ToProvider::UnloadShard(_) => node.held.clear(),
            other => panic!("{other:?}"),
        }
    }

    fn loaded(&mut self, number: u8, life: u32, layers: LayerRange) {
        let node = self.nodes.get_mut(&number).unwrap();
        if !node.alive || node.life != life {
            return;
        }
        let mut ready = word(number, layers);
        match node.manner {
            Manner::Fails(failure) => {
                let word = ShardFailed { group: GROUP, layers, failure };
                return self.say(5, number, Event::ShardFailed { from: key(number), word });
            }
            Manner::OfAnotherMake => ready.width = 63,
            _ => {}
        }
        node.held.insert(layers);
        if node.manner != Manner::Mute {
            self.say(5, number, Event::ShardReady { from: key(number), word: ready });
        }
    }

    fn dialled(&mut self, number: u8, life: u32, epoch: u64) {
        let node = &self.nodes[&number];
        if !node.alive || (node.life, node.epoch) != (life, epoch) || node.manner == Manner::Deaf {
            return;
        }
        let stands = |other: u8| self.nodes[&other].alive && self.nodes[&other].manner != Manner::Deaf;
        let lost = neighbours(&node.chain, number).into_iter().find(|(_, other)| !stands(*other));
        match lost {
            Some((side, _)) => {
                self.say_lost(5000, number, across(side), epoch);
            }
            None => {
                let word = ShardLinked { group: GROUP, epoch: Epoch::new(epoch) };
                let has_bad_line = node.manner == Manner::BadLine;
                let others = neighbours(&node.chain, number);
                self.say(5, number, Event::ShardLinked { from: key(number), word });
                for (side, other) in others.into_iter().filter(|_| has_bad_line) {
                    let (first, second) = (3000 + self.below(3000), 3000 + self.below(3000));
                    self.say_lost(first, other, side, epoch);
                    self.say_lost(second, number, across(side), epoch);
                }
            }
        }
    }

    /// A plan over nodes that the coordinator sees.
    fn offer(&mut self, without: &BTreeSet<ProviderId>) {
        let here = self
            .nodes
            .iter()
            .filter(|(number, node)| node.seen.is_some() && !without.contains(&id(**number)));
        let mut here: Vec<u8> = here.map(|(number, _)| *number).collect();
        if here.len() < self.shards {
            return;
        }
        for place in (1..here.len()).rev() {
            let other = self.below(place as u64 + 1);
            here.swap(place, usize::try_from(other).unwrap());
        }
        let more = self.below((here.len() - self.shards) as u64 + 1);
        let shards = self.shards + usize::try_from(more).unwrap();
        let all: Vec<usize> = (0..shards).collect();
        let spares: Vec<(u8, &[usize])> = here[shards..].iter().map(|node| (*node, &all[..])).collect();
        let rate = 800 + self.below(1600);
        self.tell(Event::Plan(plan(&here[..shards], &spares, rate)));
    }

    // ---- the witness ----

    fn tell(&mut self, event: Event) {
        let heard = |node: &NodeKey| node.as_bytes()[0];
        let witness = &mut self.witness;
        match &event {
            Event::ShardReady { from, word } => {
                let asked = witness.asked.get_mut(&(heard(from), word.layers));
                asked.into_iter().for_each(|ready| *ready = true);
            }
            Event::ShardFailed { from, word } => {
                witness.asked.remove(&(heard(from), word.layers));
            }
            Event::ShardLinked { from, word } if word.epoch.get() == witness.epoch => {
                witness.linked.insert(heard(from));
            }
            Event::NodeGone(node) | Event::NodeBack(node) => {
                witness.asked.retain(|(number, _), _| id(*number) != *node);
            }
            _ => {}
        }
        witness.forget();
        let mut effects = Vec::new();
        self.group.handle(event, at(self.now), &mut effects);
        self.see(&effects);
    }

    /// Holds effects against what may be, and does them.
    fn see(&mut self, effects: &[Effect]) {
        assert!(self.witness.ended.is_none() || effects.is_empty(), "an ended group does nothing");
        let mut links = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { to, message } => {
                    let number =
                        *self.nodes.keys().find(|number| id(**number) == *to).expect("a node that there is");
                    let life = self.nodes[&number].seen.expect("who is gone is not spoken to");
                    match &**message {
                        ToProvider::LinkShard(link) => links.push((number, link.clone())),
                        other => self.witness.asked_for(number, other),
                    }
                    let wait = 1 + self.below(200);
                    self.put(wait, Due::Arrives { node: number, life, message: message.clone() });
                }
                Effect::AskForPlan { without } => {
                    let wait = self.below(3000);
                    self.put(wait, Due::Planned(without.clone()));
                }
                other => self.witness.told(other),
            }
        }
        if !links.is_empty() {
            self.witness.linking(&links);
        }
        self.check();
    }

    /// What holds after each event.
    fn check(&self) {
        let state = self.group.state();
        assert_eq!(state == State::Ready, self.witness.ready.is_some(), "it is ready when it says so");
        assert_eq!(matches!(state, State::Ended(_)), self.witness.ended.is_some());
        let is_at_rest = matches!(state, State::Ready | State::Ended(_));
        assert!(is_at_rest || self.group.deadline().is_some(), "every wait has an end");
        let most = if self.group.next.is_some() || self.group.previous.is_some() { 2 } else { 1 };
        for number in self.nodes.keys() {
            let held = self.witness.asked.keys().filter(|(node, _)| node == number).count();
            assert!(held <= most, "{number} is to hold {held} runs at once");
        }
        let holders: BTreeSet<_> = self.group.holders().map(|(node, _)| node).collect();
        assert_eq!(holders.len(), self.group.holders().count(), "no node holds two stages");
        let held: Vec<u16> = self.group.holders().flat_map(|(_, layers)| layers.iter()).collect();
        assert_eq!(held, (0..LAYERS).collect::<Vec<_>>(), "every layer once, in order");
    }
}

impl Witness {
    fn asked_for(&mut self, number: u8, message: &ToProvider) {
        match message {
            ToProvider::LoadShard(load) => {
                let before = self.asked.insert((number, load.layers), false);
                assert_eq!(before, None, "nothing is asked for twice");
            }
            ToProvider::UnloadShard(UnloadShard { layers: Some(layers), .. }) => {
                self.asked.remove(&(number, *layers));
            }
            ToProvider::UnloadShard(_) => self.asked.retain(|(node, _), _| *node != number),
            other => panic!("{other:?}"),
        }
        self.forget();
    }

    /// A head that holds nothing knows of no jobs.
    fn forget(&mut self) {
        let asked = &self.asked;
        let holds = |head: &u8| asked.iter().any(|((node, _), said)| node == head && *said);
        self.head = self.head.filter(holds);
    }

    fn linking(&mut self, links: &[(u8, LinkShard)]) {
        let link = &links[0].1;
        assert!(links.iter().all(|(_, other)| other == link), "all hear the same");
        assert_eq!(link.epoch.get(), self.epoch + 1, "epochs rise by one");
        let held: Vec<u16> = link.chain.shards().iter().flat_map(|shard| shard.layers.iter()).collect();
        assert_eq!(held, (0..LAYERS).collect::<Vec<_>>(), "every layer once, in order");
        self.epoch += 1;
        self.chain = link.chain.shards().iter().map(|shard| shard.node.as_bytes()[0]).collect();
        self.linked.clear();
        assert_eq!(links.iter().map(|(to, _)| *to).collect::<Vec<_>>(), self.chain, "every shard hears it");
        for (number, shard) in self.chain.iter().zip(link.chain.shards()) {
            let said = self.asked.get(&(*number, shard.layers));
            assert_eq!(said, Some(&true), "{number} has said that it holds {:?}", shard.layers);
        }
    }

    fn told(&mut self, effect: &Effect) {
        match effect {
            Effect::Ready { epoch, head, jobs, .. } => {
                assert_eq!((epoch.get(), self.ready), (self.epoch, None));
                assert_eq!(self.linked, self.chain.iter().copied().collect(), "all are linked");
                let head = head.as_bytes()[0];
                assert_eq!(head, self.chain[0]);
                assert_eq!(
                    *jobs == Jobs::GoOn,
                    self.head == Some(head),
                    "who knows the jobs goes on with them"
                );
                (self.ready, self.head) = (Some(epoch.get()), Some(head));
                self.times_ready += 1;
            }
            Effect::Broken { epoch } => assert_eq!(self.ready.take(), Some(epoch.get())),
            Effect::Ended(end) => {
                assert_eq!(self.ended.replace(*end), None, "it ends once");
                self.ready = None;
                assert!(self.asked.is_empty(), "nobody is left with layers: {:?}", self.asked);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The neighbours of a shard, each with the side on which it has this one.
fn neighbours(chain: &[u8], number: u8) -> Vec<(Neighbour, u8)> {
    let Some(place) = chain.iter().position(|other| *other == number) else { return Vec::new() };
    let last = chain.len() - 1;
    let mut all = Vec::new();
    if place > 0 {
        all.push((Neighbour::Down, chain[place - 1]));
    }
    if place < last {
        all.push((Neighbour::Up, chain[place + 1]));
    }
    if last > 0 && (place == 0 || place == last) {
        all.push((Neighbour::Results, chain[last - place]));
    }
    all
}

/// The side on which the other one has a link.
const fn across(side: Neighbour) -> Neighbour {
    match side {
        Neighbour::Up => Neighbour::Down,
        Neighbour::Down => Neighbour::Up,
        Neighbour::Results => Neighbour::Results,
    }
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        Just(Manner::Good),
        (1_u64..200).prop_map(Manner::Slow),
        Just(Manner::Twice),
        Just(Manner::Mute),
        Just(Manner::Deaf),
        Just(Manner::BadLine),
        Just(Manner::Fails(ShardFailure::Unavailable)),
        Just(Manner::Fails(ShardFailure::OutOfMemory)),
        Just(Manner::OfAnotherMake),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::Die),
        3 => Just(Fault::Rise),
        2 => Just(Fault::Break),
        2 => manner().prop_map(Fault::Behave),
        1 => Just(Fault::Offer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_group_keeps_its_promises_and_is_ready_or_ends(
        nodes in 1_u8..9,
        shards in 1_usize..5,
        seed: u64,
        faults in prop::collection::vec((0..CALM, any::<prop::sample::Index>(), fault()), 0..40),
    ) {
        let shards = shards.min(usize::from(nodes));
        let mut night = Night::new(nodes, shards, seed);
        for (time, node, fault) in faults {
            let node = u8::try_from(node.index(usize::from(nodes))).unwrap() + 1;
            night.put(time, Due::Fault(node, fault));
        }
        night.play(CALM);
        for node in 1..=nodes {
            night.put(0, Due::Fault(node, Fault::Behave(Manner::Good)));
            night.put(0, Due::Fault(node, Fault::Rise));
        }
        night.play(CALM + BOUND);
        let state = night.group.state();
        prop_assert!(matches!(state, State::Ready | State::Ended(_)), "{state:?}");
        let times_ready = night.witness.times_ready;
        night.play(CALM + 2 * BOUND);
        prop_assert_eq!(night.group.state(), state, "what is well stays well");
        prop_assert_eq!(night.witness.times_ready, times_ready);
    }

    #[test]
    fn while_enough_nodes_live_a_group_comes_back(
        shards in 1_usize..5,
        dead in prop::collection::vec((0..CALM, any::<prop::sample::Index>()), 0..4),
        slow in 1_u64..100,
        seed: u64,
    ) {
        let nodes = u8::try_from(shards + dead.len()).unwrap();
        let mut night = Night::new(nodes, shards, seed);
        for (time, node) in &dead {
            let node = u8::try_from(node.index(usize::from(nodes))).unwrap() + 1;
            night.put(*time, Due::Fault(node, Fault::Die));
        }
        night.put(0, Due::Fault(1, Fault::Behave(Manner::Slow(slow))));
        night.put(0, Due::Fault(nodes, Fault::Behave(Manner::Twice)));
        // A node that is seen dead late, then a load, then links.
        night.play(CALM + 25_000 + 120_000 + 15_000);
        prop_assert_eq!(night.group.state(), State::Ready);
    }

    #[test]
    fn after_one_short_absence_of_anybody_a_group_comes_back(
        shards in 1_usize..5,
        away in any::<prop::sample::Index>(),
        secs in 0_u64..30,
        seed: u64,
    ) {
        let mut night = Night::new(u8::try_from(shards).unwrap(), shards, seed);
        night.play(60_000);
        prop_assert_eq!(night.group.state(), State::Ready);
        let away = u8::try_from(away.index(shards)).unwrap() + 1;
        night.put(0, Due::Fault(away, Fault::Die));
        night.put(secs * 1000, Due::Fault(away, Fault::Rise));
        night.play(60_000 + 120_000);
        prop_assert_eq!(night.group.state(), State::Ready, "no spare, no other plan: the same nodes again");
    }

    #[test]
    fn a_node_with_a_bad_line_is_done_without(
        shards in 2_usize..5,
        bad in any::<prop::sample::Index>(),
        seed: u64,
    ) {
        let nodes = 2 * u8::try_from(shards).unwrap();
        let mut night = Night::new(nodes, shards, seed);
        let bad = u8::try_from(bad.index(shards)).unwrap() + 1;
        night.put(0, Due::Fault(bad, Fault::Behave(Manner::BadLine)));
        night.play(CALM);
        prop_assert_eq!(night.group.state(), State::Ready);
        prop_assert!(!night.witness.chain.contains(&bad), "{bad} in {:?}", night.witness.chain);
    }
}
