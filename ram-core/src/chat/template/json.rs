//! `tojson`: Python's `json.dumps`, with its options and its spelling.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State};

use super::budget;
use super::filters::by_name;
use super::text::{DEPTH_MAX, float, float_repr};

/// Longest indentation of one level.
const INDENT_MAX: usize = 16;

/// `tojson`, as transformers defines it: Python's `json.dumps` without escapes for HTML.
///
/// Its options stand in this order or by name: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
pub(super) fn to_json(
    state: &mut State<'_, '_>,
    value: &Value,
    positional: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let mut json = writer(&by_name(positional, &["ensure_ascii", "indent", "separators", "sort_keys"])?)?;
    json.value(value, 0)?;
    budget::text(state, json.out)
}

fn writer(options: &Kwargs) -> Result<Json, Error> {
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match (indent.as_usize(), indent.as_str().unwrap_or_default()) {
            (Some(spaces), _) if spaces <= INDENT_MAX => " ".repeat(spaces),
            (None, text) if text.len() <= INDENT_MAX => text.to_owned(),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "indent is over the limit")),
        }),
    };
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let (ascii, sort_keys) = (ascii.unwrap_or(false), sort_keys.unwrap_or(false));
    Ok(Json { out: String::new(), ascii, sort_keys, indent, item, key })
}

/// A writer of JSON in Python's manner.
struct Json {
    out: String,
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::BadSerialization, "nested too deep"));
        }
        if self.out.len() > budget::VALUE_BYTES_MAX {
            return Err(budget::spent());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', &items, depth, |json, item| json.value(item, depth + 1))?;
            }
            ValueKind::Map => self.map(value, depth)?,
            _ => return Err(Error::new(ErrorKind::BadSerialization, "not a JSON value")),
        }
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut entries = Vec::new();
        for key in value.try_iter()? {
            let name = match key.kind() {
                ValueKind::None => "null".to_owned(),
                ValueKind::Bool => key.is_true().to_string(),
                ValueKind::Number => number(&key),
                ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                _ => return Err(Error::new(ErrorKind::BadSerialization, "not a key of JSON")),
            };
            entries.push((name, value.get_item(&key)?));
        }
        if self.sort_keys {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        self.list('{', '}', &entries, depth, |json, (name, value)| {
            json.string(name);
            json.out.push_str(&json.key.clone());
            json.value(value, depth + 1)
        })
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        items: &[T],
        depth: usize,
        mut write: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.item);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        let is_plain = |byte: u8| byte >= b' ' && !matches!(byte, b'"' | b'\\');
        if text.bytes().all(is_plain) && !(self.ascii && text.bytes().any(|byte| byte > b'~')) {
            self.out.push_str(text);
            self.out.push('"');
            return;
        }
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if character < ' ' || (self.ascii && character > '~') => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        // Writing into a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}

fn number(value: &Value) -> String {
    float(value).map_or_else(
        || value.to_string(),
        |number| match number {
            _ if number.is_nan() => "NaN".to_owned(),
            _ if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            _ => float_repr(number),
        },
    )
}
