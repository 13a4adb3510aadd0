//! Bytes to a JSON tree under limits, and the tree's values with the path at which each was found.
//!
//! Stricter than `serde_json` alone: a key given twice is an error rather than a riddle, nesting and the number of
//! values are bounded, and nothing may follow the body.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// Deepest nesting of a body: real requests end at 5, JSON schemas of tools at some 20.
pub const DEPTH_MAX: usize = 64;
/// Most JSON values in a body. The longest conversation allowed takes some 30 000; a body of nothing but `0,0,0,…`
/// would else take forty times its own size in memory.
pub const VALUES_MAX: usize = 1 << 17;

/// Longest key that an error's path repeats.
const KEY_BYTES_MAX: usize = 64;

/// Reads a whole body as one JSON value.
pub(super) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let mut reading = Reading { values_left: VALUES_MAX, fault: None, trail: Vec::new() };
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Node { reading: &mut reading, depth: 0 }.deserialize(&mut reader);
    let whole = value.and_then(|value| reader.end().map(|()| value));
    whole.map_err(|error| reading.explain(&error))
}

/// Where a value stands in a body: a list of steps on the stack, written out only when something is wrong there.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    /// The body itself.
    Body,
    /// A field of an object.
    Field(&'a Self, &'a str),
    /// An item of an array.
    Item(&'a Self, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => Ok(()),
            Self::Field(Self::Body, key) => f.write_str(shown(key)),
            Self::Field(parent, key) => write!(f, "{parent}.{}", shown(key)),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl At<'_> {
    /// An error that says what was expected here.
    pub(super) fn expected(&self, expected: &str) -> ApiError {
        match self {
            Self::Body => {
                let message = format!("invalid body: expected {expected}");
                ApiError { param: None, ..ApiError::invalid_request("", message) }
            }
            _ => {
                ApiError::invalid_request(self.to_string(), format!("invalid `{self}`: expected {expected}"))
            }
        }
    }

    /// An error that says that a field must stand here and does not.
    pub(super) fn missing(&self, key: &str, expected: &str) -> ApiError {
        let path = At::Field(self, key).to_string();
        let message = format!("missing `{path}`: expected {expected}");
        ApiError { code: Some("missing_required_parameter"), ..ApiError::invalid_request(path, message) }
    }
}

/// A value and where it was found. It has no `Debug`: it may hold words of a user.
pub(super) struct Found<'a> {
    /// Where.
    pub(super) at: At<'a>,
    /// What; null stands for nothing.
    pub(super) value: Value,
}

impl Found<'_> {
    /// A text.
    pub(super) fn string(self) -> Result<String, ApiError> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.mismatch("a string")),
        }
    }

    /// True or false.
    pub(super) fn boolean(self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.mismatch("a boolean"))
    }

    /// A whole number within bounds.
    pub(super) fn whole<T>(self, bounds: RangeInclusive<T>) -> Result<T, ApiError>
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        let expected = || format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let Value::Number(number) = &self.value else {
            return Err(self.mismatch(&expected()));
        };
        let exact = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
        let number = exact.or_else(|| whole(number)).and_then(|number| T::try_from(number).ok());
        number.filter(|number| bounds.contains(number)).ok_or_else(|| self.expected(&expected()))
    }

    /// A number within bounds; `expected` says which.
    pub(super) fn number(self, bounds: RangeInclusive<f32>, expected: &str) -> Result<f32, ApiError> {
        if !self.value.is_number() {
            return Err(self.mismatch(expected));
        }
        // As it was written: rounded to 32 bits, a number just outside would fall on the bound.
        let bounds = f64::from(*bounds.start())..=f64::from(*bounds.end());
        let inside = self.value.as_f64().is_some_and(|exact| bounds.contains(&exact));
        let number = <f32 as serde::Deserialize>::deserialize(&self.value).ok().filter(|_| inside);
        number.ok_or_else(|| self.expected(expected))
    }

    /// A list.
    pub(super) fn array(self) -> Result<Vec<Value>, ApiError> {
        match self.value {
            Value::Array(items) => Ok(items),
            _ => Err(self.mismatch("an array")),
        }
    }

    /// Fields.
    pub(super) fn object(self) -> Result<Map<String, Value>, ApiError> {
        match self.value {
            Value::Object(fields) => Ok(fields),
            _ => Err(self.mismatch("an object")),
        }
    }

    /// An error that says what was expected and what kind of value was found.
    pub(super) fn mismatch(&self, expected: &str) -> ApiError {
        let found = match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        self.expected(&format!("{expected}, found {found}"))
    }

    /// An error that says what was expected, where the kind was right.
    pub(super) fn expected(&self, expected: &str) -> ApiError {
        self.at.expected(expected)
    }

    /// An error that says that OpenAI would honour this and this network does not.
    pub(super) fn unsupported(&self, why: &str) -> ApiError {
        let path = self.at.to_string();
        let message = format!("`{path}` is not supported here: {why}");
        ApiError::unsupported(path, message)
    }
}

/// A number that was written with a point or an exponent and is whole all the same: `8.0` is 8, as JSON Schema has it.
///
/// The least number of 64 bits is left out: whatever is below it has been rounded to it on the way here.
fn whole(number: &Number) -> Option<i128> {
    const TOO_LOW: f64 = -9_223_372_036_854_775_808.0;
    let number = number.as_f64().filter(|number| number.fract() == 0.0 && *number > TOO_LOW)?;
    format!("{number:.0}").parse().ok()
}

/// The field of an object at `at`, or nothing when it is absent or null.
pub(super) fn take<'a>(fields: &mut Map<String, Value>, at: &'a At<'a>, key: &'a str) -> Option<Found<'a>> {
    let value = fields.remove(key).filter(|value| !value.is_null())?;
    Some(Found { at: At::Field(at, key), value })
}

/// Bytes of a value, written as JSON without white space.
pub(super) fn size(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("counting never fails, and the keys are strings");
    count.0
}

/// Whether a value nests deeper than `levels`: a number is 0 levels deep, a list of numbers 1.
pub(super) fn deeper_than(value: &Value, levels: usize) -> bool {
    let Some(inside) = levels.checked_sub(1) else { return value.is_array() || value.is_object() };
    match value {
        Value::Array(items) => items.iter().any(|item| deeper_than(item, inside)),
        Value::Object(fields) => fields.values().any(|field| deeper_than(field, inside)),
        _ => false,
    }
}

/// A key as a path may show it: keys are a stranger's text, so only plain short ones are repeated.
pub(super) fn shown(key: &str) -> &str {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-$@".contains(&byte);
    if (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(plain) { key } else { "(other)" }
}

/// What is left of the limits, and what went wrong where.
struct Reading {
    values_left: usize,
    fault: Option<Fault>,
    /// Steps to the fault, innermost first, gathered while the error unwinds.
    trail: Vec<Step>,
}

/// What `serde_json` does not refuse and this module does.
#[derive(Clone, Copy)]
enum Fault {
    TooDeep,
    TooMany,
    Twice,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Reading {
    /// The answer to a body that is no JSON, or none that is taken here.
    fn explain(self, error: &serde_json::Error) -> ApiError {
        let place = || format!("at line {}, column {}", error.line(), error.column());
        match self.fault {
            Some(Fault::TooDeep) => {
                ApiError::malformed_body(format!("the body nests deeper than {DEPTH_MAX} levels"))
            }
            Some(Fault::TooMany) => {
                ApiError::malformed_body(format!("the body holds more than {VALUES_MAX} JSON values"))
            }
            Some(Fault::Twice) => {
                let path = self.path();
                let message = format!("`{path}` is given twice, {}", place());
                ApiError { param: Some(path), ..ApiError::malformed_body(message) }
            }
            None if error.is_eof() => {
                ApiError::malformed_body(format!("the body ends too early, {}", place()))
            }
            None => ApiError::malformed_body(format!("the body is not valid JSON {}", place())),
        }
    }

    fn path(&self) -> String {
        self.trail.iter().rev().fold(String::new(), |path, step| match step {
            Step::Index(index) => format!("{path}[{index}]"),
            Step::Key(key) if path.is_empty() => shown(key).to_owned(),
            Step::Key(key) => format!("{path}.{}", shown(key)),
        })
    }

    fn refuse<E: serde::de::Error>(&mut self, fault: Fault) -> E {
        self.fault = Some(fault);
        E::custom("refused")
    }
}

/// One value to be read, `depth` levels down.
struct Node<'a> {
    reading: &'a mut Reading,
    depth: usize,
}

impl Node<'_> {
    /// Goes one level down, if that is allowed.
    fn enter<E: serde::de::Error>(&mut self) -> Result<usize, E> {
        if self.depth == DEPTH_MAX { Err(self.reading.refuse(Fault::TooDeep)) } else { Ok(self.depth + 1) }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        let Some(left) = self.reading.values_left.checked_sub(1) else {
            return Err(self.reading.refuse(Fault::TooMany));
        };
        self.reading.values_left = left;
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.enter()?;
        let mut items = Vec::new();
        loop {
            match access.next_element_seed(Node { reading: self.reading, depth }) {
                Ok(Some(item)) => items.push(item),
                Ok(None) => return Ok(Value::Array(items)),
                Err(error) => {
                    self.reading.trail.push(Step::Index(items.len()));
                    return Err(error);
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.enter()?;
        let mut fields = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if fields.contains_key(&key) {
                self.reading.trail.push(Step::Key(key));
                return Err(self.reading.refuse(Fault::Twice));
            }
            match access.next_value_seed(Node { reading: self.reading, depth }) {
                Ok(value) => fields.insert(key, value),
                Err(error) => {
                    self.reading.trail.push(Step::Key(key));
                    return Err(error);
                }
            };
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `body` and gives the message and the param of the refusal.
    fn refusal(body: &str) -> (String, Option<String>) {
        let error = parse(body.as_bytes()).unwrap_err();
        assert_eq!((error.status, error.code), (400, Some("invalid_json")), "{body}");
        (error.message, error.param)
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for body in ["{", "[1,", "\"a", "{\"a\":", "nul", ""] {
            assert!(refusal(body).0.starts_with("the body ends too early, at line"), "{body}");
        }
        for body in ["{}x", "NaN", "1e999", "[1 2]", "{\"a\":1,}", "'a'", "\"\\ud800\"", "\u{feff}{}"] {
            assert!(refusal(body).0.starts_with("the body is not valid JSON at line 1"), "{body}");
        }
        assert!(parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn a_key_given_twice_is_named_with_its_path() {
        let check = |body: &str, path: &str| assert_eq!(refusal(body).1.as_deref(), Some(path));
        check(r#"{"model":"a","model":"b"}"#, "model");
        check(r#"{"messages":[{},{"role":"user","role":"user"}]}"#, "messages[1].role");
        check(r#"{"messages":[{"a b":{"x":1,"x":2}}]}"#, "messages[0].(other).x");
    }

    #[test]
    fn nesting_is_taken_to_the_limit_and_not_beyond() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(refusal(&nested(DEPTH_MAX + 1)).0.contains("nests deeper"));
        assert!(refusal(&"[".repeat(1 << 20)).0.contains("nests deeper"));
        assert!(refusal(&"{\"a\":".repeat(1 << 18)).0.contains("nests deeper"));
    }

    #[test]
    fn values_are_counted_before_memory_is_taken_for_them() {
        let flat = |values: usize| format!("[{}0]", "0,".repeat(values - 2));
        assert!(parse(flat(VALUES_MAX).as_bytes()).is_ok());
        assert!(refusal(&flat(VALUES_MAX + 1)).0.contains("more than"));
    }

    #[test]
    fn a_value_is_measured_as_it_would_be_written() {
        let check = |text: &str, levels: usize| {
            let value = parse(text.as_bytes()).unwrap();
            assert_eq!(size(&value), text.len());
            assert!(
                !deeper_than(&value, levels) && (levels == 0 || deeper_than(&value, levels - 1)),
                "{text}"
            );
        };
        check("7", 0);
        check("[]", 1);
        check(r#"{"a":[1,{"é\n":null}],"b":""}"#, 3);
    }

    #[test]
    fn a_path_reads_as_one_would_write_it() {
        let messages = At::Field(&At::Body, "messages");
        let (third, content) = (At::Item(&messages, 2), "content");
        assert_eq!(At::Item(&At::Field(&third, content), 0).to_string(), "messages[2].content[0]");
    }
}
