//! Requests through an engine, and when their answers came.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::error::Error;
use std::time::{Duration, Instant};

use ram_core::job::{GenerationParams, Outcome, Sampling};
use ram_core::units::TokenCount;
use ram_infer::engine::{Engine, Event, Prompt, Request};

/// What came of some requests.
pub(crate) struct Answers {
    count: usize,
    /// Of each answer.
    tokens: usize,
    /// From asking until all have their first token.
    pub(crate) first: Duration,
    /// From then to the end of all.
    pub(crate) rest: Duration,
    /// Of all together.
    pub(crate) text: String,
    /// Tokens of prompts that were not computed again.
    pub(crate) cached: u64,
    /// When each token came.
    arrivals: Vec<Instant>,
}

/// Asks for the continuations of some texts at once, of so many tokens each.
pub(crate) fn ask(
    engine: &Engine,
    texts: &[String],
    tokens: usize,
    sampling: &Sampling,
) -> Result<Answers, Box<dyn Error>> {
    let params = GenerationParams::new(TokenCount::new(tokens as u64), sampling.clone());
    ask_with(engine, texts, &params)
}

/// [`ask`], with everything that can be asked for.
pub(crate) fn ask_with(
    engine: &Engine,
    texts: &[String],
    params: &GenerationParams,
) -> Result<Answers, Box<dyn Error>> {
    let tokens = usize::try_from(params.max_tokens.get())?;
    let (count, text, cached, arrivals) = (texts.len(), String::new(), 0, Vec::new());
    let (first, rest) = (Duration::ZERO, Duration::ZERO);
    let mut answers = Answers { count, tokens, first, rest, text, cached, arrivals };
    let start = Instant::now();
    let submit = |text: &String| {
        let prompt = Prompt::Text(text.as_str().into());
        engine.submit(Request { prompt, params: params.clone() })
    };
    let mut open = texts.iter().map(submit).collect::<Result<Vec<_>, _>>()?;
    for generation in &mut open {
        while let Some(event) = generation.wait_next()
            && !answers.note(event)?
        {}
    }
    answers.first = start.elapsed();
    for event in open.into_iter().flat_map(|generation| generation.into_blocking()) {
        answers.note(event)?;
    }
    answers.rest = start.elapsed() - answers.first;
    Ok(answers)
}

impl Answers {
    /// Takes note of an event; whether it brought a token.
    fn note(&mut self, event: Event) -> Result<bool, Box<dyn Error>> {
        match event {
            Event::Started { cached, .. } => self.cached += cached.get(),
            Event::Delta { text, .. } => {
                self.text += text.as_str();
                self.arrivals.push(Instant::now());
                return Ok(true);
            }
            Event::End { outcome: Outcome::Failed { failure } } => return Err(failure.into()),
            Event::End { outcome: Outcome::Done { usage, .. } } => {
                if usage.completion != TokenCount::new(self.tokens as u64) {
                    return Err("an answer ended early".into());
                }
            }
        }
        Ok(false)
    }

    /// Of all answers together, after the first token of each.
    pub(crate) fn tokens_per_s(&self) -> f64 {
        (self.count * (self.tokens - 1)) as f64 / self.rest.as_secs_f64()
    }

    /// Of a pass, on average, after the one of the first token. Those of one pass come at once: a pause of half of
    /// `pass_s`, what a pass for one token takes, parts them from those of the next.
    pub(crate) fn tokens_a_pass(&self, pass_s: f64) -> f64 {
        let pauses = self.arrivals.windows(2).filter(|pair| (pair[1] - pair[0]).as_secs_f64() > pass_s / 2.0);
        (self.tokens - 1) as f64 / pauses.count().max(1) as f64
    }

    /// In how many words the text goes in a circle, from its middle on at the latest.
    pub(crate) fn period(&self) -> Option<usize> {
        let words: Vec<&str> = self.text.split(' ').collect();
        let half = words.len() / 2;
        (1..=half / 2).find(|period| words[half..] == words[half - period..words.len() - period])
    }
}
