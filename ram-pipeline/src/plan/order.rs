//! Orders of nodes that are tried.
//!
//! The order matters where ways differ, and a little where layers do. Up to [`EXACT_NODES`] nodes, and for models of
//! very many layers one node less, all orders are tried; beyond, some likely ones, and then whichever move of one node
//! makes the best one better, as long as [`STEPS_MAX`] steps of search last.

use super::Objective;
use super::split::{First, Found, Table};

/// Up to so many nodes a plan is the best there is, of up to some 50 layers; with one node less, of any model.
pub const EXACT_NODES: usize = 6;
/// What a search over many orders may take: some ten milliseconds.
const STEPS_MAX: usize = 6_000_000;

/// The best split of all orders that are tried.
pub(super) fn best(table: &Table, objective: Objective) -> Option<Found> {
    let exact = table.nodes() <= EXACT_NODES && factorial(table.nodes()) * table.steps() <= STEPS_MAX;
    let mut search = Search { table, objective, exact, slowest: u64::MAX, best: None };
    let orders = if exact { permutations(table.nodes()) } else { search.likely() };
    if objective == Objective::Throughput {
        search.slowest = orders.iter().filter_map(|order| table.least_slowest(order)).min()?;
    }
    for order in &orders {
        search.try_order(order);
    }
    if !exact {
        search.improve();
    }
    if objective == Objective::Latency {
        search.even_out();
    }
    search.best.map(|(found, _)| found)
}

struct Search<'a> {
    table: &'a Table,
    objective: Objective,
    /// Whether all orders are tried.
    exact: bool,
    /// No stage or transfer may be slower.
    slowest: u64,
    best: Option<(Found, Vec<usize>)>,
}

impl Search<'_> {
    /// The best split of an order.
    fn split(&self, order: &[usize]) -> Option<Found> {
        let firsts = match self.table.has_one_delay() {
            true => vec![First::Any],
            // Other first nodes come with other permutations.
            false if self.exact => vec![First::At(0)],
            false => (0..order.len()).map(First::At).collect(),
        };
        let found = firsts.into_iter().filter_map(|first| self.table.quickest(order, first, self.slowest));
        found.min_by_key(|found| self.rank(found))
    }

    /// Looks at an order; whether it is better than all before.
    fn try_order(&mut self, order: &[usize]) -> bool {
        let Some(found) = self.split(order) else { return false };
        let better = self.best.as_ref().is_none_or(|(best, _)| self.rank(&found) < self.rank(best));
        if better {
            self.best = Some((found, order.to_vec()));
        }
        better
    }

    /// Of the splits that are as quick, for nodes alike there are many, takes the one whose slowest stage is fastest.
    fn even_out(&mut self) {
        let Some((best, order)) = self.best.clone() else { return };
        let mut least = self.table.least_slowest(&order).unwrap_or(best.slowest);
        let mut most = best.slowest;
        while least < most {
            self.slowest = least.midpoint(most);
            match self.split(&order) {
                Some(found) if found.token <= best.token => {
                    most = found.slowest;
                    self.best = Some((found, order.clone()));
                }
                _ => least = self.slowest + 1,
            }
        }
    }

    /// What a split is judged by: of equals, the one with fewer stages.
    fn rank(&self, found: &Found) -> (u64, u64, usize) {
        let (token, slowest, stages) = (found.token, found.slowest, found.runs.len());
        match self.objective {
            Objective::Latency => (token, slowest, stages),
            Objective::Throughput => (slowest, token, stages),
        }
    }

    /// Fast nodes first or last, large ones first or last, and each node's chain of the nearest ones.
    fn likely(&self) -> Vec<Vec<usize>> {
        let nodes: Vec<usize> = (0..self.table.nodes()).collect();
        let mut orders = Vec::new();
        for mut order in [self.table.by_speed(), self.table.by_room()] {
            orders.push(order.clone());
            order.reverse();
            orders.push(order);
        }
        if !self.table.has_one_delay() {
            orders.extend(nodes.iter().map(|first| self.table.nearest(*first)));
        }
        orders
    }

    /// Moves one node at a time to where it makes the plan better.
    fn improve(&mut self) {
        let firsts = if self.table.has_one_delay() { 1 } else { self.table.nodes() };
        let mut tries = STEPS_MAX / (self.table.steps() * firsts).max(1);
        while let Some((_, order)) = self.best.clone() {
            let mut better = false;
            let moves = (0..order.len()).flat_map(|from| (0..order.len()).map(move |to| (from, to)));
            for (from, to) in moves.filter(|(from, to)| from != to) {
                if tries == 0 {
                    return;
                }
                tries -= 1;
                let mut moved = order.clone();
                let node = moved.remove(from);
                moved.insert(to, node);
                if self.objective == Objective::Throughput
                    && let Some(slowest) = self.table.least_slowest(&moved)
                {
                    self.slowest = self.slowest.min(slowest);
                }
                if self.try_order(&moved) {
                    better = true;
                    break;
                }
            }
            if !better {
                return;
            }
        }
    }
}

fn factorial(count: usize) -> usize {
    (1..=count).product()
}

/// All orders of `0..count`.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let with = |order: Vec<usize>| {
        (0..count).map(move |place| {
            let mut order = order.clone();
            order.insert(place, count - 1);
            order
        })
    };
    shorter.into_iter().flat_map(with).collect()
}
