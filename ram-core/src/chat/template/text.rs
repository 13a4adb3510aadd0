//! How Python prints a value: `str`, `repr`, and the digits of a float.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::budget;

/// Deepest nesting of a value that is printed or written as JSON.
pub(super) const DEPTH_MAX: usize = 128;

/// Python's `str(value)`; an undefined one is empty, as in Jinja2.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Ok(String::new());
    }
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    repr(value)
}

/// Python's `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(&mut out, value, 0)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deep"));
    }
    if out.len() > budget::VALUE_BYTES_MAX {
        return Err(budget::spent());
    }
    match value.kind() {
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number => match float(value) {
            Some(number) => out.push_str(&float_repr(number)),
            None => display(out, value),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut length = 0;
            for item in value.try_iter()? {
                separate(out, length);
                write_repr(out, &item, depth + 1)?;
                length += 1;
            }
            out.push_str(match (tuple, length) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                separate(out, index);
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => display(out, value),
    }
    Ok(())
}

fn separate(out: &mut String, index: usize) {
    if index > 0 {
        out.push_str(", ");
    }
}

fn display(out: &mut String, value: &Value) {
    // Writing into a string cannot fail.
    let _ = write!(out, "{value}");
}

/// A text in quotes: single ones, unless it holds such and no double ones.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'\'' | b'"' | b'\\');
    if text.bytes().all(is_plain) {
        out.push_str(text);
        out.push(mark);
        return;
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == mark => out.extend(['\\', character]),
            _ if is_printable(character) => out.push(character),
            _ => {
                let code = u32::from(character);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(mark);
}

/// Python's `str.isprintable` of one character: neither a control, nor unassigned, nor white space but the space.
pub(super) fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return matches!(character, ' '..='~');
    }
    // Rust's own rule for its literals is the same, but that it also escapes a combining mark at the beginning.
    let mut text = String::from("a");
    text.push(character);
    text.escape_debug().count() == 2
}

/// The float that a value is, if it is one.
pub(super) fn float(value: &Value) -> Option<f64> {
    (value.is_number() && !value.is_integer()).then(|| f64::try_from(value.clone()).ok()).flatten()
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        return format!("{digits}{}", self::exponent(exponent));
    }
    format!("{number:?}")
}

/// An exponent of ten as C writes it: a sign, and two digits at least.
pub(super) fn exponent(exponent: i32) -> String {
    format!("e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123_456.789, "123456.789"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
        ] {
            assert_eq!(float_repr(number), text);
        }
    }

    #[test]
    fn texts_are_quoted_as_in_python() {
        for (text, expected) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("it's \"so\"", "'it\\'s \"so\"'"),
            ("\\\n\t\0\u{7f}", "'\\\\\\n\\t\\x00\\x7f'"),
            ("\u{a0}\u{ad}\u{200b}\u{e000}\u{10ffff}", "'\\xa0\\xad\\u200b\\ue000\\U0010ffff'"),
            ("é漢🦀\u{301}", "'é漢🦀\u{301}'"),
        ] {
            assert_eq!(repr(&Value::from(text)).unwrap(), expected);
        }
    }

    #[test]
    fn a_value_nested_without_end_is_refused() {
        let mut value = Value::from(0);
        for _ in 0..=DEPTH_MAX {
            value = Value::from(vec![value]);
        }
        assert!(repr(&value).is_err());
        let mut wide = Value::from("x".repeat(1 << 20));
        for _ in 0..40 {
            wide = Value::from(vec![wide.clone(), wide]);
        }
        assert!(repr(&wide).is_err());
    }
}
