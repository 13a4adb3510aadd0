//! What a simulation came to, as tables and charts of text.

use std::time::Duration;

use ram_core::id::ProviderId;
use ram_pipeline::plan::Plan;
use ram_pipeline::sim::{Pass, Report};

use crate::{ms, per_second};

/// Who holds what.
pub(crate) fn stages<'a>(plan: &Plan, name: impl Fn(ProviderId) -> &'a str, alone: &Report) {
    println!("stage  machine             layers      memory      a token  to the next  bytes a token");
    for (number, stage) in plan.stages.iter().enumerate() {
        let layers = format!("{}..{}", stage.layers.first(), stage.layers.end());
        let hop = alone.hops.get(number);
        let bytes = hop.and_then(|hop| hop.token_bytes.get().checked_div(hop.token_frames)).unwrap_or(0);
        println!(
            "{number:>5}  {:<18}  {layers:<9} {:>9}  {:>11}  {:>11}  {bytes:>13}",
            name(stage.node),
            stage.needs.total().to_string(),
            millis(stage.time),
            millis(stage.hop),
        );
    }
    for spare in &plan.spares {
        println!("spare  {:<18}  could hold stages {:?}", name(spare.node), spare.stages);
    }
    let (least, most) = alone.delays;
    println!("\n{least} to {most} one-way delays a token were counted, over {} stages", plan.stages.len());
}

/// Tokens a second over sessions.
pub(crate) fn rates(plan: &Plan, runs: &[(u32, Report)]) {
    let expected = plan.expected;
    println!(
        "expected: {:.2} tokens/s alone, {:.2} in all with no pass shared",
        per_second(expected.single),
        per_second(expected.saturated)
    );
    println!("\nsessions  tokens/s  busiest  first token");
    let most = runs.iter().map(|(_, report)| per_second(report.rate())).fold(f64::MIN_POSITIVE, f64::max);
    for (sessions, report) in runs {
        let rate = per_second(report.rate());
        let busiest = report.stages.iter().map(|stage| stage.busy.get()).max().unwrap_or(0) / 10;
        let (soonest, last) = report.first_token;
        let wait =
            if *sessions == 1 { seconds(last) } else { format!("{} to {}", seconds(soonest), seconds(last)) };
        println!("{sessions:>8}  {rate:>8.2}  {busiest:>5} %  {wait:<18} {}", bar(rate / most, 32));
    }
}

/// When each stage computed: a row a stage, the same time in all.
pub(crate) fn lanes(sessions: u32, report: &Report) {
    let passes: Vec<&Pass> = report.stages.iter().flat_map(|stage| &stage.passes).collect();
    let steady = |pass: &&&Pass| pass.from >= report.steady.0 && pass.until <= report.steady.1;
    let longest = passes.iter().filter(steady).map(|pass| pass.until - pass.from).max().unwrap_or_default();
    // Every pass is at least some columns wide, and a few are seen.
    let column = (longest / 6).max(Duration::from_nanos(1));
    println!(
        "{sessions} sessions, when all are at their answers; a column is {}, a number a pass's sessions",
        millis(column)
    );
    for (number, stage) in report.stages.iter().enumerate() {
        let mut row: Vec<char> = vec!['·'; COLUMNS];
        for (turn, pass) in stage.passes.iter().enumerate() {
            let place = |at: Duration| {
                let columns = at.saturating_sub(report.steady.0).as_nanos() / column.as_nanos();
                usize::try_from(columns).unwrap_or(COLUMNS).min(COLUMNS)
            };
            let (from, until) = (place(pass.from), place(pass.until));
            let shade = if turn % 2 == 0 { '█' } else { '▓' };
            row[from..until].fill(shade);
            let label: Vec<char> = pass.sessions.to_string().chars().collect();
            if pass.from >= report.steady.0 && until - from > label.len() {
                row[from..from + label.len()].copy_from_slice(&label);
            }
        }
        println!(
            "  stage {number:<2} {}  {:>3} % busy",
            row.iter().collect::<String>(),
            stage.busy.get() / 10
        );
    }
}

/// A share of some columns, to an eighth.
fn bar(share: f64, columns: u32) -> String {
    let eighths =
        (1..=columns * 8).take_while(|eighth| f64::from(*eighth) <= share * f64::from(columns * 8)).count();
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    format!("{}{rest}", "█".repeat(eighths / 8))
}

pub(crate) fn millis(time: Duration) -> String {
    format!("{:.2} ms", ms(time))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Of a lane.
const COLUMNS: usize = 72;
