//! The operators of a template as functions: Python's rules, within the budget. [`super::source`] puts the calls in.

use minijinja::value::{Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::budget::{self, spend};
use super::{format, source, text};

/// Defines the functions that [`super::source::rewrite`] calls.
pub(super) fn define(environment: &mut Environment<'_>) {
    environment.add_function(source::ADD, add);
    environment.add_function(source::CONCAT, concat);
    environment.add_function(source::MULTIPLY, multiply);
    environment.add_function(source::MODULO, modulo);
    environment.add_function(source::ITERATE, iterate);
}

fn wrong(operator: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("these values have no {operator}"))
}

/// A number as Python has it; true is 1.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        match value.kind() {
            ValueKind::Bool => Some(Self::Int(i128::from(value.is_true()))),
            ValueKind::Number => match text::float(value) {
                Some(number) => Some(Self::Float(number)),
                None => i128::try_from(value.clone()).ok().map(Self::Int),
            },
            _ => None,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "as Python does where an int meets a float")]
    fn float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

/// What an operator makes of two numbers: exact for ints, refused where it would overflow.
fn numbers(
    a: Number,
    b: Number,
    ints: impl Fn(i128, i128) -> Option<i128>,
    floats: impl Fn(f64, f64) -> f64,
) -> Option<Value> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => ints(a, b).map(int),
        (a, b) => Some(Value::from(floats(a.float(), b.float()))),
    }
}

fn int(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// `a + b + …`, from the left.
fn add(state: &mut State<'_, '_>, operands: Rest<Value>) -> Result<Value, Error> {
    if operands.iter().all(|operand| operand.kind() == ValueKind::String) {
        return join(state, operands.iter().filter_map(Value::as_str));
    }
    let mut rest = operands.0.into_iter();
    let mut sum = rest.next().unwrap_or_default();
    for operand in rest {
        sum = plus(state, &sum, &operand)?;
    }
    Ok(sum)
}

fn plus(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return join(state, [a, b].into_iter());
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return numbers(a, b, i128::checked_add, |a, b| a + b).ok_or_else(|| wrong("+"));
    }
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if !is_list(a) || !is_list(b) || a.is_tuple() != b.is_tuple() {
        return Err(wrong("+"));
    }
    let items = a.len().unwrap_or(0).saturating_add(b.len().unwrap_or(0));
    spend(state, budget::list_bytes(items))?;
    let items: Vec<Value> = a.try_iter()?.chain(b.try_iter()?).collect();
    Ok(if a.is_tuple() { Value::from_object(Tuple::from(items)) } else { Value::from(items) })
}

/// One text of several.
fn join<'a>(state: &mut State<'_, '_>, parts: impl Iterator<Item = &'a str> + Clone) -> Result<Value, Error> {
    spend(state, parts.clone().map(str::len).sum())?;
    Ok(Value::from(parts.collect::<String>()))
}

/// `a ~ b ~ …`: each as it prints.
#[expect(clippy::needless_pass_by_value, reason = "a function is handed its arguments")]
fn concat(state: &mut State<'_, '_>, operands: Rest<Value>) -> Result<Value, Error> {
    let mut out = String::new();
    for operand in operands.iter() {
        match operand.as_str() {
            Some(part) => out.push_str(part),
            None => out.push_str(&text::str(operand)?),
        }
        if out.len() > budget::VALUE_BYTES_MAX {
            return Err(budget::spent());
        }
    }
    budget::text(state, out)
}

/// `a * b`: of numbers, or a text or a list so many times.
fn multiply(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    let (of_a, of_b) = (Number::of(a), Number::of(b));
    let (many, times) = match (of_a, of_b) {
        (Some(a), Some(b)) => {
            return numbers(a, b, i128::checked_mul, |a, b| a * b).ok_or_else(|| wrong("*"));
        }
        (None, Some(Number::Int(times))) => (a, times),
        (Some(Number::Int(times)), None) => (b, times),
        _ => return Err(wrong("*")),
    };
    // A number that no length can have is refused by the budget, and none or less gives nothing.
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = many.as_str() {
        spend(state, text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(if text.is_empty() { 0 } else { times })));
    }
    if many.kind() != ValueKind::Seq {
        return Err(wrong("*"));
    }
    let items: Vec<Value> = many.try_iter()?.collect();
    spend(state, budget::list_bytes(items.len().saturating_mul(times)))?;
    let times = if items.is_empty() { 0 } else { times };
    let items: Vec<Value> = std::iter::repeat_n(items, times).flatten().collect();
    Ok(if many.is_tuple() { Value::from_object(Tuple::from(items)) } else { Value::from(items) })
}

/// `a % b`: what is left of a division, with the sign of `b`; or a text with its places filled.
fn modulo(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(places) = a.as_str() {
        let filled = format::printf(places, &format::Arguments::of_operand(b))?;
        return budget::text(state, filled);
    }
    let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) else { return Err(wrong("%")) };
    if b.float() == 0.0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "division by zero"));
    }
    let ints = |a: i128, b: i128| {
        let left = a.checked_rem(b).unwrap_or(0);
        Some(if left != 0 && (left < 0) != (b < 0) { left + b } else { left })
    };
    let floats = |a: f64, b: f64| {
        let left = a % b;
        if left == 0.0 {
            0.0_f64.copysign(b)
        } else if (left < 0.0) != (b < 0.0) {
            left + b
        } else {
            left
        }
    };
    numbers(a, b, ints, floats).ok_or_else(|| wrong("%"))
}

/// What a loop runs through: several values as a tuple of them, and never none.
#[expect(clippy::needless_pass_by_value, reason = "a function is handed its arguments")]
fn iterate(over: Rest<Value>) -> Result<Value, Error> {
    match over.as_slice() {
        [one] if one.is_none() => Err(Error::new(ErrorKind::InvalidOperation, "none has no items")),
        [one] => Ok(one.clone()),
        several => Ok(Value::from_object(Tuple::from(several.to_vec()))),
    }
}
