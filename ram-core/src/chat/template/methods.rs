//! Methods of Python's `str`, `list` and `dict` that templates call. None of them changes its value.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::budget::{self, spend};
use super::text;

/// Calls a method: one of this file, or else one of `minijinja-contrib`.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    spend(state, budget::size(value))?;
    let found = match value.kind() {
        ValueKind::String => of_text(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match found {
        Some(value) => Ok(value),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn wrong(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            found.map(|at| Some(Value::from(at))).ok_or_else(|| wrong("not in the list"))
        }
        _ => Ok(None),
    }
}

fn of_text(
    state: &mut State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let found = match method {
        "split" | "rsplit" => {
            let parts = split(text, args, method == "rsplit")?;
            spend(state, budget::list_bytes(parts.len()))?;
            Value::from(parts)
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            lines(text, keep).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(wrong("empty separator"));
            }
            let parts = partition(text, separator, method == "rpartition");
            Value::from_object(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            let cut =
                if method == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            Value::from(cut.unwrap_or(text))
        }
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, characters, method))
        }
        "replace" => {
            let (from, to, most, named): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let most = most.or(named.get("count")?).and_then(|most| usize::try_from(most).ok());
            named.assert_all_used()?;
            return replace(state, text, from, to, most).map(Some);
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            search(text, method, args)?
        }
        "center" | "ljust" | "rjust" | "zfill" => return pad(state, text, method, args).map(Some),
        "format" => {
            // At most each place takes the longest argument.
            let mut longest = 0;
            for argument in args {
                longest = longest.max(text::str(argument)?.len());
            }
            spend(state, text.matches('{').count().saturating_mul(longest))?;
            return Ok(None);
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            return join(state, text, items).map(Some);
        }
        _ => return cased(state, text, method, args),
    };
    Ok(Some(found))
}

/// Methods without arguments.
fn cased(
    state: &mut State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let found = match method {
        "title" => title(text).into(),
        "swapcase" => text.chars().map(swap_case).collect::<String>().into(),
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "istitle" => (title(text) == text && text.chars().any(is_cased)).into(),
        "isprintable" => text.chars().all(text::is_printable).into(),
        "isidentifier" => {
            let starts = |c: char| c == '_' || c.is_alphabetic();
            (text.starts_with(starts) && text.chars().all(|c| starts(c) || c.is_numeric())).into()
        }
        "expandtabs" => {
            let (size, named): (Option<usize>, Kwargs) = from_args(args)?;
            let size = size.or(named.get("tabsize")?).unwrap_or(8);
            named.assert_all_used()?;
            spend(state, text.matches('\t').count().saturating_mul(size))?;
            return Ok(Some(expand_tabs(text, size).into()));
        }
        _ => return Ok(None),
    };
    let () = from_args(args)?;
    Ok(Some(found))
}

/// White space as `str.split` and `str.strip` see it.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn is_cased(character: char) -> bool {
    character.is_lowercase() || character.is_uppercase()
}

/// `str.title`: the first of each run of letters is large, the others are small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        inside = is_cased(character);
    }
    out
}

fn swap_case(character: char) -> String {
    if character.is_uppercase() {
        character.to_lowercase().collect()
    } else {
        character.to_uppercase().collect()
    }
}

fn expand_tabs(text: &str, size: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            _ => {
                out.push(character);
                column = if matches!(character, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}

/// `str.split` and `str.rsplit`: by a separator or by white space, at most so often.
fn split(text: &str, args: &[Value], from_the_right: bool) -> Result<Vec<Value>, Error> {
    let (separator, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let by_name: Option<String> = named.get("sep")?;
    let most: Option<i64> = most.or(named.get("maxsplit")?);
    named.assert_all_used()?;
    // A negative number is no limit.
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1);
    let parts: Vec<&str> = match separator.or(by_name.as_deref()) {
        Some("") => return Err(wrong("empty separator")),
        Some(separator) if from_the_right => {
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
        None if from_the_right => rsplit_space(text, most),
        None => split_space(text, most),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_space(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let Some(at) = rest.find(is_space).filter(|_| parts.len() < most) else {
            // What is left when the cuts are used up keeps the space at its end.
            parts.push(rest);
            break;
        };
        parts.push(&rest[..at]);
        rest = rest[at..].trim_start_matches(is_space);
    }
    parts
}

fn rsplit_space(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let cut = rest.char_indices().rev().find(|(_, c)| is_space(*c));
        let Some((at, space)) = cut.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        parts.push(&rest[at + space.len_utf8()..]);
        rest = rest[..at].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// `str.splitlines`: at every character that Unicode ends a line with.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let is_end =
        |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let mark = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep { at + mark } else { at }]);
        rest = &rest[at + mark..];
    }
    lines
}

/// `str.partition` and `str.rpartition`: what stands before the separator, the separator, what stands behind it.
fn partition<'a>(text: &'a str, separator: &'a str, from_the_right: bool) -> [&'a str; 3] {
    let parts = if from_the_right { text.rsplit_once(separator) } else { text.split_once(separator) };
    match parts {
        Some((before, after)) => [before, separator, after],
        None if from_the_right => ["", "", text],
        None => [text, "", ""],
    }
}

fn strip<'a>(text: &'a str, characters: Option<&str>, method: &str) -> &'a str {
    let gone = |c: char| characters.map_or_else(|| is_space(c), |characters| characters.contains(c));
    let text = if method == "rstrip" { text } else { text.trim_start_matches(gone) };
    if method == "lstrip" { text } else { text.trim_end_matches(gone) }
}

/// `str.replace`: the first so many, or all.
pub(super) fn replace(
    state: &mut State<'_, '_>,
    text: &str,
    from: &str,
    to: &str,
    most: Option<usize>,
) -> Result<Value, Error> {
    let found = text.matches(from).take(most.unwrap_or(usize::MAX)).count();
    spend(state, found.saturating_mul(to.len()).saturating_add(text.len()))?;
    Ok(Value::from(text.replacen(from, to, found)))
}

/// Methods that look for a part, within a range of characters.
fn search(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (wanted, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let Some((offset, window)) = window(text, start, end) else {
        return match method {
            "index" | "rindex" => Err(wrong("substring not found")),
            "find" | "rfind" => Ok(Value::from(-1)),
            "count" => Ok(Value::from(0)),
            _ => Ok(Value::from(false)),
        };
    };
    if matches!(method, "startswith" | "endswith") {
        let is_at = |part: &str| match method {
            "startswith" => window.starts_with(part),
            _ => window.ends_with(part),
        };
        if let Some(part) = wanted.as_str() {
            return Ok(Value::from(is_at(part)));
        }
        if !wanted.is_tuple() {
            return Err(wrong("a text or a tuple of texts is wanted"));
        }
        return Ok(Value::from(wanted.try_iter()?.any(|part| part.as_str().is_some_and(is_at))));
    }
    let wanted = wanted.as_str().ok_or_else(|| wrong("a text is wanted"))?;
    if method == "count" {
        return Ok(Value::from(window.matches(wanted).count()));
    }
    let found = if method.starts_with('r') { window.rfind(wanted) } else { window.find(wanted) };
    match found {
        Some(at) => Ok(Value::from(offset + window[..at].chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(wrong("substring not found")),
    }
}

/// The characters from `start` to `end`, counted from the end where negative, and how many stand before them. None
/// where the range begins behind the text or behind its own end.
fn window(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    if start.is_none() && end.is_none() {
        return Some((0, text));
    }
    let length = i64::try_from(text.chars().count()).ok()?;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)).min(length));
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    let byte = |at: usize| text.char_indices().map(|(byte, _)| byte).chain([text.len()]).nth(at);
    (start <= end).then(|| Some((start, &text[byte(start)?..byte(end)?])))?
}

/// Fills a text up to a width in characters.
fn pad(state: &mut State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let mut fill = fill.unwrap_or(" ").chars();
    let (Some(fill), None) = (fill.next(), fill.next()) else { return Err(wrong("one character fills")) };
    let (width, length) = (usize::try_from(width).unwrap_or(0), text.chars().count());
    let missing = width.saturating_sub(length);
    spend(state, missing.saturating_mul(fill.len_utf8()).saturating_add(text.len()))?;
    let filled = |count: usize, fill: char| fill.to_string().repeat(count);
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", filled(missing, fill)),
        "rjust" => format!("{}{text}", filled(missing, fill)),
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            format!("{sign}{}{digits}", filled(missing, '0'))
        }
        _ => {
            // Where the sides cannot be equal, Python gives the odd width's space to the left.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", filled(left, fill), filled(missing - left, fill))
        }
    }))
}

/// `str.join`: of texts only.
fn join(state: &mut State<'_, '_>, separator: &str, items: &Value) -> Result<Value, Error> {
    if items.is_none() || items.is_undefined() {
        return Err(wrong("none has no items"));
    }
    let mut out = String::new();
    for (index, item) in items.try_iter()?.enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(item.as_str().ok_or_else(|| wrong("only texts are joined"))?);
        if out.len() > budget::VALUE_BYTES_MAX {
            return Err(budget::spent());
        }
    }
    budget::text(state, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_split_as_in_python() {
        let words = |text, args: &[Value], right| -> Vec<String> {
            split(text, args, right).unwrap().iter().map(ToString::to_string).collect()
        };
        let (none, dash) = (Value::from(()), Value::from("-"));
        assert_eq!(words(" a b  c ", &[], true), ["a", "b", "c"]);
        assert_eq!(words(" a b  c ", &[], false), ["a", "b", "c"]);
        assert_eq!(words(" a b  c ", &[none.clone(), Value::from(1)], true), [" a b", "c"]);
        assert_eq!(words(" a b  c ", &[none, Value::from(1)], false), ["a", "b  c "]);
        assert_eq!(words("a-b-c", &[dash.clone(), Value::from(1)], true), ["a-b", "c"]);
        assert_eq!(words("a-b-c", &[dash.clone(), Value::from(1)], false), ["a", "b-c"]);
        assert_eq!(words("a-b-c", &[dash, Value::from(-1)], true), ["a", "b", "c"]);
        assert!(split("a", &[Value::from("")], false).is_err());
        assert_eq!(partition("a=b=c", "=", false), ["a", "=", "b=c"]);
        assert_eq!(partition("a=b=c", "=", true), ["a=b", "=", "c"]);
        assert_eq!(partition("abc", "=", true), ["", "", "abc"]);
    }

    #[test]
    fn lines_end_where_unicode_says() {
        assert_eq!(lines("a\r\nb\rc\n\nd\u{2028}e", false), ["a", "b", "c", "", "d", "e"]);
        assert_eq!(lines("a\r\nb\n", true), ["a\r\n", "b\n"]);
        assert!(lines("", true).is_empty());
    }

    #[test]
    fn ranges_count_characters() {
        assert_eq!(window("äbc", Some(1), None), Some((1, "bc")));
        assert_eq!(window("äbc", Some(-2), Some(-1)), Some((1, "b")));
        assert_eq!(window("äbc", Some(-9), Some(9)), Some((0, "äbc")));
        assert_eq!(window("äbc", Some(3), None), Some((3, "")));
        assert_eq!(window("äbc", Some(4), None), None);
        assert_eq!(window("äbc", Some(2), Some(1)), None);
    }
}
