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
//! How many tokens are guessed hangs on how often such guesses were right so far in this sequence, by the length of the
//! likeness: as many as are all right with a likelihood of [`WORTH`]. So the window grows where the text repeats
//! itself, and closes where it only seems to; then it opens again by and by, for one try.

use std::collections::HashMap;

/// Guesses for one sequence.
pub(super) struct Drafter {
    /// Where each run of [`GRAM`] tokens was followed last: the position of the token after it.
    last: HashMap<[u32; GRAM], u32>,
    /// At `position - GRAM`: where the run before that position was followed the time before.
    before: Vec<Option<u32>>,
    /// How likely a guessed token is right if those before it are, by the [`kind`] of likeness.
    rates: [f32; KINDS],
    /// The kind of the last guess.
    kind: usize,
}

impl Drafter {
    /// A drafter that has read nothing.
    pub(super) fn new() -> Self {
        Self { last: HashMap::new(), before: Vec::new(), rates: RATES_FIRST, kind: 0 }
    }

    /// What may follow `tokens`, which are those of the call before and some more; at most `room` tokens. Reads each
    /// token once.
    pub(super) fn guess(&mut self, tokens: &[u32], room: usize) -> Vec<u32> {
        self.read(tokens);
        let mut guess: Vec<u32> = Vec::new();
        let Some(Match { position: start, length }) = self.find(tokens) else { return guess };
        self.kind = kind(length);
        for position in (start..).take(self.window().min(room)) {
            // A match that reaches its own end goes on with what was just guessed: a repetition.
            let again = |guess: &[u32]| guess.get(position - tokens.len()).copied();
            let Some(token) = tokens.get(position).copied().or_else(|| again(&guess)) else { break };
            guess.push(token);
        }
        guess
    }

    /// Learns how the last guess went: so many of its tokens were right before the first wrong one.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        let rate = &mut self.rates[self.kind];
        for _ in 0..right {
            *rate += (1.0 - *rate) * LEARNING;
        }
        if right < guessed {
            *rate -= *rate * LEARNING;
        }
    }

    /// How many tokens of the kind are worth a guess. A window that is closed opens a little each time.
    fn window(&mut self) -> usize {
        let rate = &mut self.rates[self.kind];
        if *rate < WORTH {
            *rate += FORGETTING;
            return 0;
        }
        let mut all_right = *rate;
        let mut window = 1;
        while window < WINDOW_MAX && all_right * *rate >= WORTH {
            all_right *= *rate;
            window += 1;
        }
        window
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

/// What a likeness of so many tokens says of the next one, one of [`KINDS`].
const fn kind(length: usize) -> usize {
    match length {
        ..4 => 0,
        4 => 1,
        5..7 => 2,
        7..10 => 3,
        10..16 => 4,
        _ => 5,
    }
}

/// The shortest run that is looked up: of two tokens nearly every one has stood before, and says little.
const GRAM: usize = 3;
/// The longest likeness that is measured.
const MATCH_MAX: usize = 32;
/// Places that are compared, the last ones first.
const PLACES_MAX: usize = 16;
/// The widest window: of more tokens a pass is no longer bound by memory.
const WINDOW_MAX: usize = 15;
/// What a checked token costs beside the pass for one token, at most.
const WORTH: f32 = 0.4;
/// Kinds of likeness.
const KINDS: usize = 6;
/// How likely each kind is right where nothing is known yet.
const RATES_FIRST: [f32; KINDS] = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// How much one token changes a likelihood.
const LEARNING: f32 = 0.05;
/// How much a closed window opens each time: after a wrong guess it stays closed for some twenty tokens, which bounds
/// what a text that only seems to repeat itself costs.
const FORGETTING: f32 = 0.001;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a new drafter guesses after a text, as text.
    fn guess(text: &str, room: usize) -> String {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        Drafter::new().guess(&tokens, room).into_iter().filter_map(char::from_u32).collect()
    }

    #[test]
    fn the_place_with_the_longest_likeness_goes_on() {
        assert_eq!(guess("one two three; two th", 2), "re");
        assert_eq!(guess("a wolf ran, a dog ran. a wolf ra", 2), "n,", "not the last place, but the likest");
        assert_eq!(guess("a dog ran, a dog ran. a dog ra", 2), "n.", "of equals the last place");
        assert_eq!(guess("nothing of it", 9), "");
        assert_eq!(guess("ab ab", 9), "", "two tokens say too little");
        assert_eq!(guess("", 9), "");
    }

    #[test]
    fn a_repetition_goes_on_past_its_own_end() {
        assert_eq!(guess(&"xy".repeat(20), 7), "xyxyxyx");
        assert_eq!(guess(&"=".repeat(40), 3), "===");
        assert_eq!(guess(&"xy".repeat(20), 0), "");
    }

    /// How many tokens are guessed when each guess goes as `right` says, step by step.
    fn windows(right: impl Fn(usize) -> usize, steps: usize) -> Vec<usize> {
        let tokens: Vec<u32> = "a word, a word".bytes().map(u32::from).collect();
        let mut drafter = Drafter::new();
        let step = |_| {
            let guessed = drafter.guess(&tokens, 99).len();
            drafter.learn(guessed, right(guessed));
            guessed
        };
        (0..steps).map(step).collect()
    }

    #[test]
    fn the_window_follows_what_was_right() {
        let all = windows(|guessed| guessed, 30);
        assert!(all.is_sorted() && all[0] < 5 && all[29] == WINDOW_MAX, "{all:?}");
        let none = windows(|_| 0, 500);
        assert!(none[20..].iter().all(|guessed| *guessed <= 1), "{none:?}");
        let tries = none[20..].iter().filter(|guessed| **guessed > 0).count();
        assert!((15..40).contains(&tries), "a closed window opens by and by: {tries} times");
    }

    proptest! {
        #[test]
        fn what_is_found_is_the_longest_likeness(tokens in prop::collection::vec(0_u32..3, 0..60)) {
            let mut drafter = Drafter::new();
            for end in 0..=tokens.len() {
                let tokens = &tokens[..end];
                drafter.read(tokens);
                let likeness = |position: usize| {
                    let past = tokens[..position].iter().rev().zip(tokens.iter().rev());
                    past.take_while(|(then, now)| then == now).count().min(MATCH_MAX)
                };
                let places: Vec<usize> = (0..end).rev().filter(|place| likeness(*place) >= GRAM).collect();
                let best = places.iter().take(PLACES_MAX).map(|place| likeness(*place)).max();
                let found = drafter.find(tokens);
                prop_assert_eq!(found.map(|found| found.length), best);
                if let Some(Match { position, length }) = found {
                    prop_assert_eq!(likeness(position), length);
                }
            }
        }

        #[test]
        fn a_guess_is_never_longer_than_its_room(
            tokens in prop::collection::vec(0_u32..3, 0..60),
            room in 0_usize..30,
        ) {
            prop_assert!(Drafter::new().guess(&tokens, room).len() <= room.min(WINDOW_MAX));
        }
    }
}
