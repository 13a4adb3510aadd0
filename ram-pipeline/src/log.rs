//! What a shard has sent on, session by session: from it a shard that takes the place of a lost one gets its keys and
//! values anew, without the shards before.
//!
//! ```text
//! session   | step 0..512 | step 512..600 | step 600..601 | step 601..602 |   each as it went out
//! ```

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use bytes::{Bytes, BytesMut};
use ram_core::id::JobId;
use ram_core::units;
use ram_proto::frame::{Mark, Step};
use ram_proto::tensor::Shape;

/// How what was sent is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Step by step: whatever the back end makes of a step's shape, keys and values are the same to the bit.
    Exact,
    /// In pieces of so many tokens: quicker, and as good where numbers do not depend on a step's shape.
    Fast(NonZeroU32),
}

/// The steps of all sessions. The payloads are those that went out, and are not copied.
#[derive(Debug)]
pub(crate) struct Log {
    bytes_max: u64,
    bytes: u64,
    sessions: BTreeMap<JobId, Vec<Sent>>,
}

/// A step, as it went out.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) step: Step,
    pub(crate) payload: Bytes,
}

impl Sent {
    const fn end(&self) -> Mark {
        Mark { position: self.step.position + self.step.shape.rows, prefix: self.step.after }
    }
}

impl Log {
    /// An empty log that holds so many bytes of activations.
    pub(crate) const fn new(bytes_max: units::Bytes) -> Self {
        Self { bytes_max: bytes_max.get(), bytes: 0, sessions: BTreeMap::new() }
    }

    /// Notes a step. When there are too many bytes the longest session's are forgotten: it would begin anew, which
    /// costs others nothing.
    pub(crate) fn push(&mut self, step: Step, payload: Bytes) {
        let session = step.of.session;
        if step.position == 0 {
            self.close(session);
            self.sessions.insert(session, Vec::new());
        }
        // A session whose beginning was forgotten is of no use.
        let Some(steps) = self.sessions.get_mut(&session) else { return };
        let at = steps.last().map_or_else(Mark::default, Sent::end);
        if at != (Mark { position: step.position, prefix: step.prefix }) {
            return self.close(session);
        }
        self.bytes += payload.len() as u64;
        steps.push(Sent { step, payload });
        while self.bytes > self.bytes_max
            && let Some((&longest, _)) = self.sessions.iter().max_by_key(|(_, steps)| size(steps))
        {
            self.close(longest);
        }
    }

    /// Forgets what a session has behind a mark.
    pub(crate) fn trim(&mut self, session: JobId, to: Mark) {
        let Some(steps) = self.sessions.get_mut(&session) else { return };
        while let Some(Sent { step, mut payload }) = steps.pop() {
            self.bytes -= payload.len() as u64;
            let rows = to.position.saturating_sub(step.position).min(step.shape.rows);
            if rows == 0 {
                continue;
            }
            let row_bytes = payload.len() / step.shape.rows as usize;
            payload.truncate(row_bytes * rows as usize);
            let after = if rows == step.shape.rows { step.after } else { to.prefix };
            let step = Step { shape: Shape { rows, ..step.shape }, after, ..step };
            self.bytes += payload.len() as u64;
            steps.push(Sent { step, payload });
            break;
        }
    }

    /// Forgets a session.
    pub(crate) fn close(&mut self, session: JobId) {
        if let Some(steps) = self.sessions.remove(&session) {
            self.bytes -= size(&steps);
        }
    }

    /// All that a session has sent up to just this mark; `None` if that is not here any more.
    pub(crate) fn until(&self, session: JobId, mark: Mark, how: Replay) -> Option<Vec<Sent>> {
        let steps = self.sessions.get(&session)?;
        let is_whole = steps.last().map_or_else(Mark::default, Sent::end) == mark;
        is_whole.then(|| match how {
            Replay::Exact => steps.iter().map(Sent::again).collect(),
            Replay::Fast(rows) => joined(steps, rows.get()),
        })
    }

    /// Bytes that are held.
    #[cfg(test)]
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Sent {
    fn again(&self) -> Self {
        Self { step: self.step.clone(), payload: self.payload.clone() }
    }
}

fn size(steps: &[Sent]) -> u64 {
    steps.iter().map(|sent| sent.payload.len() as u64).sum()
}

/// Steps that follow each other, joined to pieces of at most so many tokens.
fn joined(steps: &[Sent], rows_max: u32) -> Vec<Sent> {
    let (mut pieces, mut rest) = (Vec::new(), steps);
    while let Some(first) = rest.first() {
        let mut rows = first.step.shape.rows;
        let more = rest[1..].iter().take_while(|sent| {
            rows = rows.saturating_add(sent.step.shape.rows);
            rows <= rows_max
        });
        let (own, behind) = rest.split_at(1 + more.count());
        rest = behind;
        let (Some(last), [_, _, ..]) = (own.last(), own) else {
            pieces.push(first.again());
            continue;
        };
        let mut payload = BytesMut::new();
        own.iter().for_each(|sent| payload.extend_from_slice(&sent.payload));
        let rows = own.iter().map(|sent| sent.step.shape.rows).sum();
        let shape = Shape { rows, ..first.step.shape };
        let step = Step { shape, after: last.step.after, ..first.step.clone() };
        pieces.push(Sent { step, payload: payload.freeze() });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ram_core::id::Epoch;
    use ram_proto::frame::{Of, PrefixHash, Spent, Want};
    use ram_proto::tensor::Dtype;

    use super::*;

    const WIDTH: u32 = 2;

    fn prefix(tokens: u32) -> PrefixHash {
        PrefixHash::EMPTY.with(&(0..tokens).collect::<Vec<_>>())
    }

    fn mark(position: u32) -> Mark {
        Mark { position, prefix: prefix(position) }
    }

    fn session(number: u32) -> JobId {
        JobId::from_bits(number.into())
    }

    /// A step whose activations are the numbers of its positions.
    fn push(log: &mut Log, number: u32, position: u32, rows: u32) {
        let numbers = (position..position + rows).flat_map(|position| [position; WIDTH as usize]);
        let payload: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let step = Step {
            of: Of { session: session(number), epoch: Epoch::new(1) },
            position,
            shape: Shape { rows, cols: WIDTH },
            dtype: Dtype::F32,
            prefix: prefix(position),
            after: prefix(position + rows),
            want: Want::Nothing,
            deadline_ms: 9,
            spent: Spent::default(),
        };
        log.push(step, payload.into());
    }

    proptest! {
        #[test]
        fn what_was_sent_is_sent_again_up_to_a_mark(
            rows in prop::collection::vec(1_u32..9, 1..20),
            cut in any::<prop::sample::Index>(),
            at_once in prop::option::of(1_u32..30),
        ) {
            let mut log = Log::new(units::Bytes::from_mib(1));
            let mut end = 0;
            for rows in &rows {
                push(&mut log, 1, end, *rows);
                end += rows;
            }
            let cut = u32::try_from(cut.index(end as usize + 1)).unwrap();
            log.trim(session(1), mark(cut));
            let how = at_once.map_or(Replay::Exact, |rows| Replay::Fast(NonZeroU32::new(rows).unwrap()));
            let pieces = log.until(session(1), mark(cut), how).unwrap();
            let (mut at, mut bytes) = (mark(0), Vec::new());
            for sent in &pieces {
                prop_assert_eq!(Mark { position: sent.step.position, prefix: sent.step.prefix }, at);
                prop_assert_eq!(sent.payload.len() as u64, 4 * sent.step.shape.elements());
                at = sent.end();
                bytes.extend_from_slice(&sent.payload);
            }
            let numbers = (0..cut).flat_map(|position| [position; WIDTH as usize]);
            prop_assert_eq!((at, bytes), (mark(cut), numbers.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()));
            prop_assert_eq!(log.bytes(), u64::from(4 * WIDTH * cut));
            if let Some(most) = at_once {
                let long = pieces.iter().filter(|sent| sent.step.shape.rows > most);
                prop_assert!(long.map(|sent| sent.step.shape.rows).all(|long| rows.contains(&long) || long < 9));
                prop_assert!(pieces.windows(2).all(|two| two[0].step.shape.rows + two[1].step.shape.rows > most));
            }
            prop_assert!(log.until(session(1), mark(cut + 1), how).is_none());
            log.close(session(1));
            prop_assert_eq!(log.bytes(), 0);
        }
    }

    #[test]
    fn the_longest_is_forgotten_when_there_is_too_much() {
        let mut log = Log::new(units::Bytes::new(8 * 10));
        push(&mut log, 1, 0, 4);
        push(&mut log, 2, 0, 6);
        push(&mut log, 1, 4, 1);
        assert!(log.until(session(2), mark(6), Replay::Exact).is_none());
        assert!(log.until(session(1), mark(5), Replay::Exact).is_some());
        push(&mut log, 2, 6, 1);
        assert_eq!(log.bytes(), 8 * 5, "what goes on behind a gap is of no use");
        push(&mut log, 2, 0, 2);
        assert!(log.until(session(2), mark(2), Replay::Exact).is_some(), "what begins anew is");
    }

    #[test]
    fn a_gap_forgets_a_session() {
        let mut log = Log::new(units::Bytes::from_mib(1));
        push(&mut log, 1, 0, 4);
        push(&mut log, 1, 5, 1);
        assert_eq!(log.bytes(), 0);
        assert!(log.until(session(1), mark(4), Replay::Exact).is_none());
    }
}
