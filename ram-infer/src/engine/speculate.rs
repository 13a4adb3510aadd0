//! Guesses at an answer's next tokens, looked up in what was said before (prompt lookup: Saxena 2023; the likeness to a
//! compressor's match finder is no accident).
//!
//! Where the last tokens have stood before, what followed them then may follow again: names, quotations, code that is
//! being edited. The model checks all guessed tokens in one pass, which costs little more than a pass for one where
//! memory is the limit, and the sampler decides at each position as it would have without: a guess is kept as long as
//! it is the very token that the sampler picks. The answer is the same; only the time differs.
//!
//! ```text
//! … the red fox jumps over … and the red fox | jumps over      <- guessed from the place with the longest match
//! ```
//!
//! The window, how many tokens are guessed, doubles when all were right, and shrinks to what was right when not. After
//! guesses that were wrong from the first token on, none are made for a while, each time for longer.

use std::collections::HashMap;

/// Guesses for one sequence.
pub(super) struct Drafter {
    /// Where each run of [`GRAM`] tokens was followed last: the position of the token after it.
    last: HashMap<[u32; GRAM], u32>,
    /// At `position - GRAM`: where the run before that position was followed the time before.
    before: Vec<Option<u32>>,
    /// Most tokens of the next guess.
    window: usize,
    /// Guesses to leave out.
    resting: u32,
    /// How often in a row a guess was wrong from its first token on.
    misses: u32,
}

impl Drafter {
    /// A drafter that has read nothing.
    pub(super) fn new() -> Self {
        Self { last: HashMap::new(), before: Vec::new(), window: WINDOW_FIRST, resting: 0, misses: 0 }
    }

    /// What may follow `tokens`, which are those of the call before and some more; at most `room` tokens. Reads each
    /// token once.
    pub(super) fn guess(&mut self, tokens: &[u32], room: usize) -> Vec<u32> {
        self.read(tokens);
        let Some(found) = self.find(tokens) else { return Vec::new() };
        if self.resting > 0 {
            self.resting -= 1;
            return Vec::new();
        }
        let window = if found.length < MATCH_SURE { self.window.min(WINDOW_UNSURE) } else { self.window };
        let mut guess: Vec<u32> = Vec::new();
        for position in (found.position..).take(window.min(room)) {
            // A match that reaches its own end goes on with what was just guessed: a repetition.
            let again = |guess: &[u32]| guess.get(position - tokens.len()).copied();
            let Some(token) = tokens.get(position).copied().or_else(|| again(&guess)) else { break };
            guess.push(token);
        }
        guess
    }

    /// Learns how a guess went: so many of its tokens were right before the first wrong one.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right > 0 {
            self.misses = 0;
        }
        if right == guessed {
            self.window = (2 * self.window).min(WINDOW_MAX);
        } else if right > 0 {
            self.window = right.max(WINDOW_FIRST);
        } else {
            self.window = WINDOW_FIRST;
            self.resting = (1 << self.misses.min(REST_DOUBLINGS)) - 1;
            self.misses += 1;
        }
    }

    /// Takes note of every run that has a token after it.
    fn read(&mut self, tokens: &[u32]) {
        for end in GRAM + self.before.len()..tokens.len() {
            let (Some(gram), Ok(position)) = (tokens[..end].last_chunk(), u32::try_from(end)) else { return };
            self.before.push(self.last.insert(*gram, position));
        }
    }

    /// The place whose past is most like that of the end of `tokens`; of equals the last one.
    fn find(&self, tokens: &[u32]) -> Option<Match> {
        let mut place = self.last.get(tokens.last_chunk::<GRAM>()?).copied();
        let mut best: Option<Match> = None;
        for _ in 0..PLACES_MAX {
            let Some(position) = place.map(|place| place as usize) else { break };
            let past = tokens[..position].iter().rev().zip(tokens.iter().rev()).take(MATCH_MAX);
            let length = past.take_while(|(then, now)| then == now).count();
            if best.is_none_or(|best| length > best.length) {
                best = Some(Match { position, length });
            }
            if length == MATCH_MAX {
                break;
            }
            place = self.before[position - GRAM];
        }
        best
    }
}

/// A place that looks like the end.
#[derive(Clone, Copy)]
struct Match {
    /// The position of the token that followed.
    position: usize,
    /// How many tokens before it are those at the end.
    length: usize,
}

/// The shortest run that is looked up: of two tokens nearly every one has stood before, and says little.
const GRAM: usize = 3;
/// The longest likeness that is measured.
const MATCH_MAX: usize = 16;
/// From this likeness on the window is used whole.
const MATCH_SURE: usize = 6;
/// Places that are compared, the last ones first.
const PLACES_MAX: usize = 16;
/// The window after a guess that was wrong from its first token on, and at the start.
const WINDOW_FIRST: usize = 3;
/// The window where the likeness is small.
const WINDOW_UNSURE: usize = 3;
/// The widest window: further tokens cost more than they bring, as the pass is no longer bound by memory.
const WINDOW_MAX: usize = 15;
/// The longest rest is two to this power, less one.
const REST_DOUBLINGS: u32 = 5;
