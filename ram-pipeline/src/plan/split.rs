//! The best runs of layers for nodes in a given order, each of which may be left out.
//!
//! With `g(j, a)` the least time until the hidden state after layer `a` is at node `j`, and `f(j, b)` until it has been
//! through layer `b` there:
//!
//! ```text
//! g(j, 0) = 0                                      where j may be the first
//! g(j, a) = min over i before j of  f(i, a) + hop(i, j)
//! f(j, b) = min over a < b      of  g(j, a) + time(j, a..b)      where a..b fits j's memory
//! ```
//!
//! For the slowest stage the same holds with the larger of both in place of their sum.

use std::time::Duration;

use ram_core::layers::LayerRange;
use ram_core::memory::Workload;
use ram_core::units::{ByteRate, Bytes};

use super::{Links, ModelNeeds, Node};

/// Nanoseconds; [`NEVER`] where it cannot be.
type Nanos = u64;
const NEVER: Nanos = Nanos::MAX;

/// Everything that the search asks for, by the numbers of nodes and layers.
pub(super) struct Table {
    layers: usize,
    /// By node and layer: what the layers before it take there.
    before: Vec<Vec<Nanos>>,
    overhead: Vec<Nanos>,
    /// By node: what the head takes there.
    head: Vec<Nanos>,
    /// By node and end of a run: the earliest layer that it may begin with, so that it fits. The end where none fits.
    from: Vec<Vec<usize>>,
    /// By node: memory.
    room: Vec<Bytes>,
    /// By nodes: delay, and transfer of a hidden state.
    links: Vec<Vec<(Nanos, Nanos)>>,
    /// The one delay that there is.
    one_delay: Option<Nanos>,
}

/// A split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// From one token to the next.
    pub(super) token: Nanos,
    /// The slowest stage or transfer.
    pub(super) slowest: Nanos,
    /// Nodes by number, with their layers.
    pub(super) runs: Vec<(usize, LayerRange)>,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// The sum, with no stage or transfer slower than this.
    Sum(Nanos),
    /// The slowest.
    Slowest,
}

/// Which node may be the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// The one at this place of the order.
    At(usize),
    /// Any: all ways back are equal.
    Any,
}

impl Table {
    pub(super) fn new(model: &ModelNeeds, nodes: &[Node], links: &Links, workload: Workload) -> Self {
        let layers = model.count();
        let time = |rate: ByteRate, bytes| nanos(rate.time_for(bytes));
        let before = |node: &Node| {
            let mut read = Bytes::ZERO;
            let mut before = vec![0];
            for layer in model.layers() {
                read += layer.read;
                before.push(time(node.weights_per_s, read));
            }
            before
        };
        let way = |from: &Node, to: &Node| {
            let link = links.between(from.id, to.id);
            (nanos(link.delay), time(link.rate, model.hop_bytes()))
        };
        let ways: Vec<Vec<_>> =
            nodes.iter().map(|from| nodes.iter().map(|to| way(from, to)).collect()).collect();
        let mut delays = ways.iter().enumerate().flat_map(|(from, row)| {
            row.iter().enumerate().filter(move |(to, _)| *to != from).map(|(_, (delay, _))| *delay)
        });
        let one = delays.next().unwrap_or(0);
        Self {
            layers,
            before: nodes.iter().map(before).collect(),
            overhead: nodes.iter().map(|node| nanos(node.overhead)).collect(),
            head: nodes.iter().map(|node| time(node.weights_per_s, model.head())).collect(),
            from: nodes.iter().map(|node| earliest(model, node, workload)).collect(),
            room: nodes.iter().map(|node| node.room.available()).collect(),
            one_delay: delays.all(|delay| delay == one).then_some(one),
            links: ways,
        }
    }

    pub(super) fn nodes(&self) -> usize {
        self.before.len()
    }

    /// Whether all ways have one delay, so that it makes no odds which node is the first.
    pub(super) const fn has_one_delay(&self) -> bool {
        self.one_delay.is_some()
    }

    /// The nodes, fast ones first.
    pub(super) fn by_speed(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.nodes()).collect();
        order.sort_by_key(|node| self.before[*node][self.layers]);
        order
    }

    /// The nodes, large ones first.
    pub(super) fn by_room(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.nodes()).collect();
        order.sort_by_key(|node| std::cmp::Reverse(self.room[*node]));
        order
    }

    /// The nodes from one on, each followed by the nearest of those that are left.
    pub(super) fn nearest(&self, first: usize) -> Vec<usize> {
        let mut left: Vec<usize> = (0..self.nodes()).filter(|node| *node != first).collect();
        let mut order = vec![first];
        let mut here = first;
        let far = |from: usize, to: usize| {
            let (delay, transfer) = self.links[from][to];
            delay.saturating_add(transfer)
        };
        while let Some(next) = (0..left.len()).min_by_key(|place| far(here, left[*place])) {
            here = left.swap_remove(next);
            order.push(here);
        }
        order
    }

    /// How long a search over one order is, in steps.
    pub(super) fn steps(&self) -> usize {
        let (nodes, layers) = (self.nodes(), self.layers);
        nodes * layers * (nodes + layers) / 2
    }

    /// What one token takes in the layers `a..b` on a node.
    fn time(&self, node: usize, a: usize, b: usize) -> Nanos {
        let head = if b == self.layers { self.head[node] } else { 0 };
        (self.before[node][b] - self.before[node][a]).saturating_add(self.overhead[node]).saturating_add(head)
    }

    /// The split of the shortest way of one token.
    pub(super) fn quickest(&self, order: &[usize], first: First, slowest: Nanos) -> Option<Found> {
        self.search(order, first, Goal::Sum(slowest))
    }

    /// The least that the slowest stage or transfer can take.
    pub(super) fn least_slowest(&self, order: &[usize]) -> Option<Nanos> {
        self.search(order, First::Any, Goal::Slowest).map(|found| found.slowest)
    }

    fn search(&self, order: &[usize], first: First, goal: Goal) -> Option<Found> {
        let (ways, layers) = (Ways { table: self, goal }, self.layers);
        // By place in the order and layer.
        let mut done = vec![vec![NEVER; layers + 1]; order.len()];
        let mut came = vec![vec![(0, 0); layers + 1]; order.len()];
        for (place, &node) in order.iter().enumerate() {
            let may_begin = first == First::Any || first == First::At(place);
            let mut there = vec![(NEVER, place); layers];
            there[0].0 = if may_begin { 0 } else { NEVER };
            for (before, &other) in order[..place].iter().enumerate() {
                for (a, there) in there.iter_mut().enumerate().skip(1) {
                    let arrived = ways.arrive(done[before][a], other, node);
                    if arrived < there.0 {
                        *there = (arrived, before);
                    }
                }
            }
            for b in 1..=layers {
                for (a, (arrived, before)) in there.iter().enumerate().take(b).skip(self.from[node][b]) {
                    let through = ways.through(*arrived, node, a, b);
                    if through < done[place][b] {
                        (done[place][b], came[place][b]) = (through, (a, *before));
                    }
                }
            }
        }
        let last =
            |place: usize| ways.back(done[place][layers], order, place, first, came[place][layers].0 == 0);
        let last =
            (0..order.len()).map(|place| (last(place), place)).min().filter(|(end, _)| *end < NEVER)?.1;
        Some(self.follow(order, &came, last))
    }

    /// The runs that lead to the end at a place of the order.
    fn follow(&self, order: &[usize], came: &[Vec<(usize, usize)>], last: usize) -> Found {
        let (mut runs, mut place, mut end) = (Vec::new(), last, self.layers);
        while end > 0 {
            let (a, before) = came[place][end];
            runs.push((order[place], a, end));
            (place, end) = (before, a);
        }
        runs.reverse();
        let (mut token, mut slowest): (Nanos, Nanos) = (0, 0);
        for (number, &(node, a, b)) in runs.iter().enumerate() {
            let next = runs.get(number + 1).map_or(runs[0].0, |next| next.0);
            let (delay, transfer) = if next == node { (0, 0) } else { self.links[node][next] };
            // What comes back is a token, which takes no time but the delay.
            let transfer = if number + 1 < runs.len() { transfer } else { 0 };
            let time = self.time(node, a, b);
            token = token.saturating_add(time).saturating_add(delay).saturating_add(transfer);
            slowest = slowest.max(time).max(transfer);
        }
        let run = |(node, a, b)| (node, run(a, b));
        Found { token, slowest, runs: runs.into_iter().map(run).collect() }
    }
}

/// How times come together on the way to a goal.
struct Ways<'a> {
    table: &'a Table,
    goal: Goal,
}

impl Ways<'_> {
    /// Over a link.
    fn arrive(&self, done: Nanos, from: usize, to: usize) -> Nanos {
        let (delay, transfer) = self.table.links[from][to];
        match self.goal {
            Goal::Sum(slowest) if transfer > slowest => NEVER,
            Goal::Sum(_) => done.saturating_add(delay).saturating_add(transfer),
            Goal::Slowest => done.max(transfer),
        }
    }

    /// Through layers.
    fn through(&self, arrived: Nanos, node: usize, a: usize, b: usize) -> Nanos {
        let time = self.table.time(node, a, b);
        match self.goal {
            Goal::Sum(slowest) if time > slowest => NEVER,
            Goal::Sum(_) => arrived.saturating_add(time),
            Goal::Slowest => arrived.max(time),
        }
    }

    /// Back to the first node; with `alone` there is no other.
    fn back(&self, done: Nanos, order: &[usize], place: usize, first: First, alone: bool) -> Nanos {
        let delay = match (self.goal, first) {
            (Goal::Slowest, _) => 0,
            _ if alone => 0,
            (_, First::At(first)) => self.table.links[order[place]][order[first]].0,
            (_, First::Any) => self.table.one_delay.unwrap_or(0),
        };
        done.saturating_add(delay)
    }
}

/// For each end of a run the earliest layer that it may begin with. Less of a model never needs more, so what lies
/// between fits too.
fn earliest(model: &ModelNeeds, node: &Node, workload: Workload) -> Vec<usize> {
    let fits = |a: usize, b: usize| model.needs(run(a, b), workload).total() <= node.room.available();
    let mut from = vec![0; model.count() + 1];
    for b in 1..from.len() {
        // No run that ends later begins earlier.
        from[b] = (from[b - 1]..b).find(|a| fits(*a, b)).unwrap_or(b);
    }
    from
}

fn run(a: usize, b: usize) -> LayerRange {
    let narrow = |layer: usize| u16::try_from(layer).expect("layers are counted in 16 bits");
    LayerRange::new(narrow(a), narrow(b)).expect("a run has a layer")
}

fn nanos(time: Duration) -> Nanos {
    time.as_nanos().try_into().unwrap_or(NEVER - 1)
}
