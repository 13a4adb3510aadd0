//! What an answer must look like: free text, JSON, JSON of a schema, or words of a grammar.
//!
//! A format travels with the job and is turned into a mask over the vocabulary by whoever runs it. Whether a model can
//! be held to one is known there alone; what is checked here is that a stranger's schema is small enough to be looked
//! at: compilers of schemas recurse as deep as a schema refers, and some keywords cost the square of their number.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chat::PromptText;
use crate::chat::tools::PromptJson;

/// Longest schema, written as JSON: OpenAI's own limit on names and values is about twice that.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Deepest nesting of a schema's JSON: schemas that people write end near 20.
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Most entries of one object or list in a schema, but for `enum`: each may be there or not, and what may follow what
/// is their number squared.
pub const SCHEMA_ENTRIES_MAX: usize = 256;
/// Most `$ref`s of a schema: a chain of them is followed by recursion.
pub const SCHEMA_REFS_MAX: usize = 256;
/// Most `patternProperties` of one object: each pair is compared.
pub const PATTERN_PROPERTIES_MAX: usize = 16;
/// Largest `multipleOf`, and most of its digits' value: telling multiples of n takes n states.
pub const MULTIPLE_OF_MAX: u32 = 1000;
/// Longest grammar or regular expression.
pub const GRAMMAR_BYTES_MAX: usize = 8 << 10;

/// What an answer must look like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Anything.
    #[default]
    Text,
    /// One JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema {
        /// The schema (JSON Schema 2020-12 or an earlier draft, by its `$schema`). Properties are written in its order.
        schema: PromptJson,
        /// Whether a keyword that cannot be enforced makes the format invalid; else it has no effect.
        #[serde(default)]
        strict: bool,
    },
    /// Text that a grammar allows.
    Grammar {
        /// How it is written.
        syntax: Syntax,
        /// The grammar.
        definition: PromptText,
    },
}

/// How a grammar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Syntax {
    /// Rules in the manner of Lark, beginning with `start`.
    Lark,
    /// One regular expression in the manner of Rust's `regex`, for the whole answer.
    Regex,
}

/// Why a format is not even looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The schema is long.
    #[error("a schema has at most {SCHEMA_BYTES_MAX} bytes of JSON")]
    SchemaTooLong,
    /// The schema is nested deeply.
    #[error("a schema has at most {SCHEMA_DEPTH_MAX} levels of nesting")]
    TooDeep,
    /// One of the schema's objects or lists is long.
    #[error("an object or list of a schema has at most {SCHEMA_ENTRIES_MAX} entries, unless it is an `enum`")]
    TooManyEntries,
    /// The schema refers often.
    #[error("a schema has at most {SCHEMA_REFS_MAX} `$ref`s")]
    TooManyRefs,
    /// There are many patterns of properties.
    #[error("an object of a schema has at most {PATTERN_PROPERTIES_MAX} `patternProperties`")]
    TooManyPatterns,
    /// The number whose multiples are allowed is large or long.
    #[error("`multipleOf` is at most {MULTIPLE_OF_MAX}, with digits of at most that value")]
    MultipleOf,
    /// The grammar is long, or there is none.
    #[error("a grammar has 1 to {GRAMMAR_BYTES_MAX} bytes")]
    GrammarLength,
}

impl ResponseFormat {
    /// Whether any answer will do.
    #[must_use]
    pub const fn is_text(&self) -> bool {
        matches!(self, Self::Text)
    }

    /// Checks that it is within the limits of this module.
    ///
    /// # Errors
    /// The first limit that it breaks.
    pub fn check(&self) -> Result<(), FormatError> {
        match self {
            Self::Text | Self::JsonObject => Ok(()),
            Self::JsonSchema { schema, .. } => check_schema(schema),
            Self::Grammar { definition, .. } => {
                let good = (1..=GRAMMAR_BYTES_MAX).contains(&definition.as_str().len());
                if good { Ok(()) } else { Err(FormatError::GrammarLength) }
            }
        }
    }
}

/// Checks that a schema is within the limits of this module.
///
/// # Errors
/// The first limit that it breaks.
pub fn check_schema(schema: &PromptJson) -> Result<(), FormatError> {
    let mut refs_left = SCHEMA_REFS_MAX;
    check_object(schema.as_object(), SCHEMA_DEPTH_MAX - 1, &mut refs_left)?;
    // Not before the depth is known: writing recurses.
    let mut bytes_left = BytesLeft(SCHEMA_BYTES_MAX);
    serde_json::to_writer(&mut bytes_left, schema).map_err(|_| FormatError::SchemaTooLong)
}

fn check_object(
    object: &Map<String, Value>,
    depth_left: usize,
    refs_left: &mut usize,
) -> Result<(), FormatError> {
    if object.len() > SCHEMA_ENTRIES_MAX {
        return Err(FormatError::TooManyEntries);
    }
    for (key, value) in object {
        match (key.as_str(), value) {
            ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                *refs_left = refs_left.checked_sub(1).ok_or(FormatError::TooManyRefs)?;
            }
            ("patternProperties", Value::Object(patterns)) if patterns.len() > PATTERN_PROPERTIES_MAX => {
                return Err(FormatError::TooManyPatterns);
            }
            ("multipleOf", Value::Number(number)) if !is_small(number) => {
                return Err(FormatError::MultipleOf);
            }
            // A list of plain values is one regular expression, and bounded by its bytes.
            ("enum", Value::Array(items)) if !items.iter().any(is_nested) => continue,
            _ => {}
        }
        check_value(value, depth_left, refs_left)?;
    }
    Ok(())
}

fn check_value(value: &Value, depth_left: usize, refs_left: &mut usize) -> Result<(), FormatError> {
    if !is_nested(value) {
        return Ok(());
    }
    let depth_left = depth_left.checked_sub(1).ok_or(FormatError::TooDeep)?;
    match value {
        Value::Object(object) => check_object(object, depth_left, refs_left),
        Value::Array(items) if items.len() > SCHEMA_ENTRIES_MAX => Err(FormatError::TooManyEntries),
        Value::Array(items) => items.iter().try_for_each(|item| check_value(item, depth_left, refs_left)),
        _ => Ok(()),
    }
}

const fn is_nested(value: &Value) -> bool {
    matches!(value, Value::Object(_) | Value::Array(_))
}

/// Whether a number is small, and its digits without the point are as well.
fn is_small(number: &serde_json::Number) -> bool {
    let text = number.to_string();
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_start_matches('0');
    let small = |digits: u32| digits <= MULTIPLE_OF_MAX;
    digits.is_empty()
        || (digits.parse().is_ok_and(small)
            && number.as_f64().is_some_and(|value| value.abs() <= f64::from(MULTIPLE_OF_MAX)))
}

/// Counts what is written, and fails when it is too much.
struct BytesLeft(usize);

impl std::io::Write for BytesLeft {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let left = self.0.checked_sub(bytes.len());
        self.0 = left.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for Syntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lark => "lark",
            Self::Regex => "regex",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(value: Value) -> ResponseFormat {
        let schema = serde_json::from_value(value).unwrap();
        ResponseFormat::JsonSchema { schema, strict: true }
    }

    fn nested(levels: usize) -> Value {
        (1..levels).fold(json!({}), |inner, _| json!({"items": inner}))
    }

    #[test]
    fn a_format_reads_back_as_it_was_written() {
        let check = |format: ResponseFormat, expected: Value| {
            assert_eq!(serde_json::to_value(&format).unwrap(), expected);
            assert_eq!(serde_json::from_value::<ResponseFormat>(expected).unwrap(), format);
        };
        check(ResponseFormat::Text, json!({"type": "text"}));
        check(ResponseFormat::JsonObject, json!({"type": "json_object"}));
        check(
            schema(json!({"z": 1, "a": 2})),
            json!({"type": "json_schema", "schema": {"z": 1, "a": 2}, "strict": true}),
        );
        let grammar = ResponseFormat::Grammar { syntax: Syntax::Regex, definition: "a+".into() };
        check(grammar, json!({"type": "grammar", "syntax": "regex", "definition": "a+"}));
    }

    #[test]
    fn a_schema_is_taken_to_each_limit_and_not_beyond() {
        let check = |inside: Value, outside: Value, error| {
            assert_eq!(schema(inside).check(), Ok(()));
            assert_eq!(schema(outside).check(), Err(error));
        };
        let bytes = |bytes: usize| json!({"title": "x".repeat(bytes - 12)});
        check(bytes(SCHEMA_BYTES_MAX), bytes(SCHEMA_BYTES_MAX + 1), FormatError::SchemaTooLong);
        check(nested(SCHEMA_DEPTH_MAX), nested(SCHEMA_DEPTH_MAX + 1), FormatError::TooDeep);
        let entries = |count: usize| {
            let entries: Map<_, _> = (0..count).map(|n| (format!("p{n}"), json!(true))).collect();
            json!({"properties": entries})
        };
        check(entries(SCHEMA_ENTRIES_MAX), entries(SCHEMA_ENTRIES_MAX + 1), FormatError::TooManyEntries);
        let list = |count: usize| json!({"anyOf": vec![json!({"type": "null"}); count]});
        check(list(SCHEMA_ENTRIES_MAX), list(SCHEMA_ENTRIES_MAX + 1), FormatError::TooManyEntries);
        let refs = |count: usize| {
            let half = vec![json!({"$ref": "#/$defs/a"}); count / 2];
            json!({"anyOf": half, "allOf": half, "$ref": (count % 2 == 1).then_some("#")})
        };
        check(refs(SCHEMA_REFS_MAX), refs(SCHEMA_REFS_MAX + 1), FormatError::TooManyRefs);
        let patterns = |count: usize| {
            let patterns: Map<_, _> = (0..count).map(|n| (format!("^p{n}$"), json!(true))).collect();
            json!({"patternProperties": patterns})
        };
        check(
            patterns(PATTERN_PROPERTIES_MAX),
            patterns(PATTERN_PROPERTIES_MAX + 1),
            FormatError::TooManyPatterns,
        );
        let multiple = |of: Value| json!({ "multipleOf": of });
        for inside in [json!(1), json!(1000), json!(0.01), json!(1e-9), json!(0)] {
            check(multiple(inside), multiple(json!(1001)), FormatError::MultipleOf);
        }
        for outside in [json!(1e6), json!(0.12345), json!(1e300), json!(u64::MAX)] {
            check(json!({}), multiple(outside), FormatError::MultipleOf);
        }
        let words: Vec<Value> = (0..SCHEMA_ENTRIES_MAX * 2).map(Value::from).collect();
        let lists = vec![json!([]); SCHEMA_ENTRIES_MAX + 1];
        check(json!({ "enum": words }), json!({ "enum": lists }), FormatError::TooManyEntries);
    }

    #[test]
    fn a_grammar_has_some_bytes_and_not_too_many() {
        let check = |bytes: usize, expected| {
            let definition = "x".repeat(bytes).into();
            assert_eq!(ResponseFormat::Grammar { syntax: Syntax::Lark, definition }.check(), expected);
        };
        check(0, Err(FormatError::GrammarLength));
        check(1, Ok(()));
        check(GRAMMAR_BYTES_MAX, Ok(()));
        check(GRAMMAR_BYTES_MAX + 1, Err(FormatError::GrammarLength));
    }

    #[test]
    fn debug_shows_no_word_of_a_format() {
        let grammar = ResponseFormat::Grammar { syntax: Syntax::Lark, definition: "secret".into() };
        let shown = format!("{:?} {grammar:?}", schema(json!({"title": "secret", "secret": 1})));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
