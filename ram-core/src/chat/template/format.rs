//! Python's `%` formatting of texts: flags, width, precision, and every conversion that `str` has.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::{budget, text};

/// Widest field and most digits.
const WIDTH_MAX: usize = 1 << 16;

/// What fills the places: in their order, or by their names.
pub(super) struct Arguments {
    positional: Vec<Value>,
    named: Option<Value>,
    /// Whether all must be used: not where one value stands for itself and for its keys.
    all: bool,
}

impl Arguments {
    /// What stands right of the operator: a tuple is several, a dictionary is several by name, all else is one.
    pub(super) fn of_operand(value: &Value) -> Self {
        let is_map = value.kind() == ValueKind::Map;
        let positional = match value.is_tuple() {
            true => value.try_iter().map(Iterator::collect).unwrap_or_default(),
            false => vec![value.clone()],
        };
        let all = !is_map && (value.is_tuple() || value.kind() != ValueKind::Seq);
        Self { positional, named: is_map.then(|| value.clone()), all }
    }

    /// What the filter `format` is given.
    pub(super) fn of_filter(positional: Vec<Value>, named: Option<Value>) -> Self {
        Self { positional, named, all: true }
    }
}

fn wrong(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// One place, as `%-5.2f` has it.
#[derive(Default)]
struct Place {
    left: bool,
    sign: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// Fills the places of a text.
pub(super) fn printf(places: &str, arguments: &Arguments) -> Result<String, Error> {
    let mut out = String::new();
    let mut next = arguments.positional.iter();
    let mut rest = places;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut value = None;
        if let Some(named) = rest.strip_prefix('(') {
            let (name, after) = named.split_once(')').ok_or_else(|| wrong("incomplete format key"))?;
            let map = arguments.named.as_ref().ok_or_else(|| wrong("format requires a mapping"))?;
            value = Some(map.get_item(&Value::from(name))?).filter(|value| !value.is_undefined());
            if value.is_none() {
                return Err(wrong("no such key to format"));
            }
            rest = after;
        }
        let mut take = || next.next().cloned().ok_or_else(|| wrong("not enough arguments to format"));
        let place = place(&mut rest, &mut take)?;
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let conversion = rest.chars().next().ok_or_else(|| wrong("incomplete format"))?;
        rest = &rest[conversion.len_utf8()..];
        if conversion == '%' {
            out.push('%');
            continue;
        }
        let value = value.map_or_else(take, Ok)?;
        convert(&mut out, &place, conversion, &value)?;
        if out.len() > budget::VALUE_BYTES_MAX {
            return Err(budget::spent());
        }
    }
    out.push_str(rest);
    if arguments.all && arguments.named.is_none() && next.next().is_some() {
        return Err(wrong("not all arguments converted"));
    }
    Ok(out)
}

/// Reads the flags, the width and the precision.
fn place(rest: &mut &str, take: &mut impl FnMut() -> Result<Value, Error>) -> Result<Place, Error> {
    let mut place = Place::default();
    while let Some(flag) = rest.chars().next() {
        match flag {
            '-' => place.left = true,
            '+' => place.sign = true,
            ' ' => place.space = true,
            '0' => place.zero = true,
            '#' => place.alternate = true,
            _ => break,
        }
        *rest = &rest[1..];
    }
    let (negative, width) = number(rest, take)?;
    place.left |= negative;
    place.width = width.unwrap_or(0);
    if let Some(after) = rest.strip_prefix('.') {
        *rest = after;
        place.precision = Some(number(rest, take)?.1.unwrap_or(0));
    }
    Ok(place)
}

/// Digits, or `*` for an argument. Whether it is negative, and how much.
fn number(
    rest: &mut &str,
    take: &mut impl FnMut() -> Result<Value, Error>,
) -> Result<(bool, Option<usize>), Error> {
    if let Some(after) = rest.strip_prefix('*') {
        *rest = after;
        let given = take()?.as_i64().ok_or_else(|| wrong("* wants int"))?;
        let size = usize::try_from(given.unsigned_abs()).unwrap_or(usize::MAX);
        return if size > WIDTH_MAX { Err(wrong("too wide a format")) } else { Ok((given < 0, Some(size))) };
    }
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    if digits.is_empty() {
        return Ok((false, None));
    }
    let size = digits.parse().ok().filter(|size| *size <= WIDTH_MAX);
    Ok((false, Some(size.ok_or_else(|| wrong("too wide a format"))?)))
}

fn convert(out: &mut String, place: &Place, conversion: char, value: &Value) -> Result<(), Error> {
    let cut = |text: String| match place.precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text,
    };
    match conversion {
        's' => pad(out, place, "", &cut(text::str(value)?), false),
        'r' => pad(out, place, "", &cut(text::repr(value)?), false),
        'a' => {
            let quoted = text::repr(value)?;
            let mut ascii = String::new();
            for character in quoted.chars() {
                match u32::from(character) {
                    0..=0x7e => ascii.push(character),
                    code @ ..=0xff => ascii.push_str(&format!("\\x{code:02x}")),
                    code @ ..=0xffff => ascii.push_str(&format!("\\u{code:04x}")),
                    code => ascii.push_str(&format!("\\U{code:08x}")),
                }
            }
            pad(out, place, "", &cut(ascii), false);
        }
        'c' => {
            let character = match (value.as_str(), value.as_i64()) {
                (Some(text), _) if text.chars().count() == 1 => text.to_owned(),
                (None, Some(code)) => {
                    let code = u32::try_from(code).ok().and_then(char::from_u32);
                    code.ok_or_else(|| wrong("%c is out of range"))?.to_string()
                }
                _ => return Err(wrong("%c wants one character")),
            };
            pad(out, place, "", &character, false);
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => integer(out, place, conversion, value)?,
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let number = match value.kind() {
                ValueKind::Bool => f64::from(u8::from(value.is_true())),
                ValueKind::Number => f64::try_from(value.clone()).map_err(|_| wrong("too large a number"))?,
                _ => return Err(wrong("a real number is wanted")),
            };
            let digits = real(number.abs(), place, conversion.to_ascii_lowercase());
            let digits = if conversion.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
            pad(
                out,
                place,
                sign(place, number.is_sign_negative() && !number.is_nan()),
                &digits,
                number.is_finite(),
            );
        }
        _ => return Err(wrong("unsupported format character")),
    }
    Ok(())
}

fn integer(out: &mut String, place: &Place, conversion: char, value: &Value) -> Result<(), Error> {
    let is_decimal = matches!(conversion, 'd' | 'i' | 'u');
    let number = match (value.kind(), text::float(value)) {
        (ValueKind::Bool, _) => i128::from(value.is_true()),
        #[expect(clippy::cast_possible_truncation, reason = "towards zero, as Python's int does")]
        (ValueKind::Number, Some(number)) if is_decimal && number.abs() < 1e38 => number as i128,
        (ValueKind::Number, None) => {
            i128::try_from(value.clone()).map_err(|_| wrong("too large a number"))?
        }
        _ => return Err(wrong("an integer is wanted")),
    };
    let size = number.unsigned_abs();
    let (prefix, digits) = match conversion {
        'x' => ("0x", format!("{size:x}")),
        'X' => ("0X", format!("{size:X}")),
        'o' => ("0o", format!("{size:o}")),
        _ => ("", size.to_string()),
    };
    let missing = place.precision.unwrap_or(0).saturating_sub(digits.len());
    let prefix = if place.alternate { prefix } else { "" };
    let head = format!("{}{prefix}", sign(place, number < 0));
    pad(out, place, &head, &format!("{}{digits}", "0".repeat(missing)), true);
    Ok(())
}

const fn sign(place: &Place, negative: bool) -> &'static str {
    match (negative, place.sign, place.space) {
        (true, _, _) => "-",
        (_, true, _) => "+",
        (_, _, true) => " ",
        _ => "",
    }
}

/// A number that is not negative, without its sign, by C's rules.
fn real(number: f64, place: &Place, conversion: char) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return "inf".to_owned();
    }
    let precision = place.precision.unwrap_or(6);
    match conversion {
        'f' => format!("{number:.precision$}"),
        'e' => scientific(number, precision),
        _ => {
            let digits = precision.max(1);
            let written = format!("{number:.*e}", digits - 1);
            let exponent = written.split_once('e').and_then(|(_, exponent)| exponent.parse::<i32>().ok());
            let exponent = exponent.unwrap_or(0);
            let fits = i32::try_from(digits).is_ok_and(|digits| (-4..digits).contains(&exponent));
            let (plain, tail) = if fits {
                let after = i32::try_from(digits).unwrap_or(i32::MAX) - 1 - exponent;
                (format!("{number:.*}", usize::try_from(after).unwrap_or(0)), String::new())
            } else {
                let mantissa = written.split_once('e').map_or(written.as_str(), |(mantissa, _)| mantissa);
                (mantissa.to_owned(), text::exponent(exponent))
            };
            let short = match plain.contains('.') && !place.alternate {
                true => plain.trim_end_matches('0').trim_end_matches('.'),
                false => &plain,
            };
            format!("{short}{tail}")
        }
    }
}

fn scientific(number: f64, precision: usize) -> String {
    let written = format!("{number:.precision$e}");
    let (mantissa, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    format!("{mantissa}{}", text::exponent(exponent.parse().unwrap_or(0)))
}

/// Writes a field to its width: `head` is a sign and a prefix, behind which zeros may stand.
fn pad(out: &mut String, place: &Place, head: &str, body: &str, number: bool) {
    let missing = place.width.saturating_sub(head.chars().count() + body.chars().count());
    let fill = |out: &mut String, with| out.extend(std::iter::repeat_n(with, missing));
    if place.left {
        out.extend([head, body]);
        fill(out, ' ');
    } else if place.zero && number {
        out.push_str(head);
        fill(out, '0');
        out.push_str(body);
    } else {
        fill(out, ' ');
        out.extend([head, body]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Tuple;

    fn check(places: &str, arguments: &[Value], expected: Option<&str>) {
        let operand = Value::from_object(Tuple::from(arguments.to_vec()));
        let filled = printf(places, &Arguments::of_operand(&operand));
        assert_eq!(filled.as_deref().ok(), expected, "{places}");
    }

    #[test]
    fn places_are_filled_as_in_python() {
        for (places, value, expected) in [
            ("%s|%%", Value::from(1.0), "1.0|%"),
            ("%5d|", Value::from(-42), "  -42|"),
            ("%-5d|", Value::from(42), "42   |"),
            ("%05d", Value::from(-42), "-0042"),
            ("%+d", Value::from(3), "+3"),
            ("% d", Value::from(3), " 3"),
            ("%.3d", Value::from(3), "003"),
            ("%#x", Value::from(255), "0xff"),
            ("%X", Value::from(-255), "-FF"),
            ("%o", Value::from(8), "10"),
            ("%i", Value::from(-3.7), "-3"),
            ("%.2f", Value::from(2.675), "2.67"),
            ("%07.2f", Value::from(-1.5), "-001.50"),
            ("%e", Value::from(12_345.678), "1.234568e+04"),
            ("%.0E", Value::from(1e-10), "1E-10"),
            ("%g", Value::from(1e6), "1e+06"),
            ("%g", Value::from(123_456.0), "123456"),
            ("%g", Value::from(0.0001), "0.0001"),
            ("%#.3g", Value::from(1.0), "1.00"),
            ("%f", Value::from(f64::INFINITY), "inf"),
            ("%r", Value::from("it's"), "\"it's\""),
            ("%a", Value::from("é🦀"), "'\\xe9\\U0001f980'"),
            ("%5.1s|", Value::from("éa"), "    é|"),
            ("%c", Value::from(233), "é"),
            ("%ld", Value::from(true), "1"),
        ] {
            check(places, &[value], Some(expected));
        }
        check("%*.*f|", &[Value::from(-8), Value::from(2), Value::from(1.0)], Some("1.00    |"));
    }

    #[test]
    fn what_python_refuses_is_refused() {
        check("%d", &[Value::from("a")], None);
        check("%x", &[Value::from(1.5)], None);
        check("%s %s", &[Value::from(1)], None);
        check("%s", &[Value::from(1), Value::from(2)], None);
        check("%y", &[Value::from(1)], None);
        check("%", &[Value::from(1)], None);
        check("%(a)s", &[Value::from(1)], None);
        check("%999999999d", &[Value::from(1)], None);
    }
}
