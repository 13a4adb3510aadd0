//! Filters and tests of Jinja2 that minijinja lacks or has otherwise, and a price on those that it has.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, filters};

use super::budget::{self, spend};
use super::{format, json, methods, text};

/// Defines the filters, the tests and the functions, and how values print.
pub(super) fn define(environment: &mut Environment<'_>) {
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::method);
    charge_builtins(environment);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("string", string);
    environment.add_filter("join", join);
    environment.add_filter("list", list);
    environment.add_filter("replace", replace);
    environment.add_filter("format", printf);
    environment.add_filter("indent", indent);
    environment.add_filter("center", center);
    environment.add_filter("wordcount", |text: &str| words(text));
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    for name in ["length", "count"] {
        environment.add_filter(name, length);
    }
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, escape);
    }
    // As in Jinja2, where nothing is to be had of none; undefined and texts can be run through.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
    environment.add_function("dict", dict);
    environment.remove_global("debug");
}

/// Prints `{{ value }}` as Python does, within the budget: what a block captures goes through here too.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        spend(state, text.len())?;
        return out.write_str(text).map_err(Error::from);
    }
    let text = text::str(value)?;
    spend(state, text.len())?;
    out.write_str(&text).map_err(Error::from)
}

/// Puts minijinja's own filters behind the budget: each reads its arguments once, and builds about as much.
fn charge_builtins(environment: &mut Environment<'_>) {
    let by_position: [(&'static str, Value); 17] = [
        ("upper", Value::from_function(filters::upper)),
        ("lower", Value::from_function(filters::lower)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("trim", Value::from_function(filters::trim)),
        ("items", Value::from_function(filters::items)),
        ("reverse", Value::from_function(filters::reverse)),
        ("sum", Value::from_function(filters::sum)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("map", Value::from_function(filters::map)),
        ("groupby", Value::from_function(filters::groupby)),
        ("pprint", Value::from_function(|value: &Value| text::repr(value))),
    ];
    for (name, builtin) in by_position {
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = charge(state, args)?;
            builtin.call(state, &args)
        });
    }
    for (name, builtin) in
        [("batch", Value::from_function(filters::batch)), ("slice", Value::from_function(filters::slice))]
    {
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = charge(state, args)?;
            // These fill up to a number that the template says.
            let filled = args.get(1).and_then(Value::as_usize).unwrap_or(0);
            spend(state, budget::list_bytes(filled))?;
            builtin.call(state, &args)
        });
    }
    // These take in Jinja2 by position what minijinja takes by name.
    let by_name: [(&'static str, Value, &'static [&'static str]); 3] = [
        ("sort", Value::from_function(filters::sort), &["reverse", "case_sensitive", "attribute"]),
        ("unique", Value::from_function(filters::unique), &["case_sensitive", "attribute"]),
        ("dictsort", Value::from_function(filters::dictsort), &["case_sensitive", "by", "reverse"]),
    ];
    for (name, builtin, names) in by_name {
        let sorted = move |state: &mut State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>| {
            spend(state, budget::size(value))?;
            builtin.call(state, &[value.clone(), Value::from(self::by_name(args, names)?)])
        };
        environment.add_filter(name, sorted);
    }
    for name in ["bool", "chain", "lines", "split", "zip"] {
        // Filters of minijinja alone.
        environment.remove_filter(name);
    }
}

fn charge(state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>) -> Result<Vec<Value>, Error> {
    let args = args.into_values();
    spend(state, args.iter().map(budget::size).fold(0, usize::saturating_add))?;
    Ok(args)
}

fn wrong(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// Arguments by their names, where some may stand in this order before them.
pub(super) fn by_name(args: Rest<ValueOrKwargs>, names: &[&str]) -> Result<Kwargs, Error> {
    let mut named: Vec<(String, Value)> = Vec::new();
    for (index, value) in args.into_values().into_iter().enumerate() {
        if value.is_kwargs() {
            let kwargs = Kwargs::try_from(value)?;
            for name in kwargs.args() {
                if named.iter().any(|(taken, _)| taken == name) {
                    return Err(Error::new(ErrorKind::TooManyArguments, "given twice"));
                }
                named.push((name.to_owned(), kwargs.peek(name)?));
            }
        } else {
            let name = names.get(index).ok_or_else(|| Error::from(ErrorKind::TooManyArguments))?;
            named.push(((*name).to_owned(), value));
        }
    }
    Ok(named.into_iter().collect())
}

fn string(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String { Ok(value.clone()) } else { budget::text(state, text::str(value)?) }
}

/// `join(d='', attribute=none)`: of the items as they print.
fn join(state: &mut State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let named = by_name(args, &["d", "attribute"])?;
    let separator = match named.get::<Option<Value>>("d")? {
        Some(separator) => text::str(&separator)?,
        None => String::new(),
    };
    let attribute: Option<Value> = named.get("attribute")?;
    named.assert_all_used()?;
    let mut items = value.clone();
    if let Some(attribute) = attribute.filter(|attribute| !attribute.is_none()) {
        let by: Kwargs = [("attribute", attribute)].into_iter().collect();
        items = state.apply_filter("map", &[items, Value::from(by)])?;
    }
    let mut out = String::new();
    for (index, item) in run_through(&items)?.enumerate() {
        if index > 0 {
            out.push_str(&separator);
        }
        match item.as_str() {
            Some(item) => out.push_str(item),
            None => out.push_str(&text::str(&item)?),
        }
        if out.len() > budget::VALUE_BYTES_MAX {
            return Err(budget::spent());
        }
    }
    budget::text(state, out)
}

/// The items of a value: none has none to give, an undefined one has no items.
fn run_through(value: &Value) -> Result<impl Iterator<Item = Value> + use<>, Error> {
    if value.is_none() { Err(wrong("none has no items")) } else { value.try_iter() }
}

fn list(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let items = match value.as_str() {
        Some(text) => text.chars().count(),
        None => value.len().unwrap_or(0),
    };
    spend(state, budget::list_bytes(items))?;
    Ok(Value::from(run_through(value)?.collect::<Vec<Value>>()))
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

/// `replace(old, new, count=none)`
fn replace(state: &mut State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let named = by_name(args, &["old", "new", "count"])?;
    let (old, new): (Value, Value) = (named.get("old")?, named.get("new")?);
    let count: Option<i64> = named.get("count")?;
    named.assert_all_used()?;
    let (value, old, new) = (text::str(value)?, text::str(&old)?, text::str(&new)?);
    methods::replace(state, &value, &old, &new, count.and_then(|count| usize::try_from(count).ok()))
}

/// `'%s' | format(…)`
fn printf(state: &mut State<'_, '_>, places: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut positional = args.into_values();
    let named = positional.pop_if(|last| last.is_kwargs());
    if named.is_some() && !positional.is_empty() {
        return Err(wrong("can't handle positional and keyword arguments at the same time"));
    }
    let filled = format::printf(&text::str(places)?, &format::Arguments::of_filter(positional, named))?;
    budget::text(state, filled)
}

/// `indent(width=4, first=false, blank=false)`: a width may be a text.
fn indent(state: &mut State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let named = by_name(args, &["width", "first", "blank"])?;
    let width: Option<Value> = named.get("width")?;
    let (first, blank): (Option<bool>, Option<bool>) = (named.get("first")?, named.get("blank")?);
    named.assert_all_used()?;
    let width = width.unwrap_or_else(|| Value::from(4));
    let text = text::str(value)? + "\n";
    // As Jinja2 does: of an end of line, whichever it is, a plain one is left.
    let lines = methods::lines(&text, false);
    let margin = match (width.as_str(), width.as_usize()) {
        (Some(margin), _) => margin.to_owned(),
        (None, Some(spaces)) if spaces > budget::VALUE_BYTES_MAX => return Err(budget::spent()),
        (None, Some(spaces)) => " ".repeat(spaces),
        _ => return Err(wrong("a width is wanted")),
    };
    spend(state, margin.len().saturating_mul(lines.len()).saturating_add(text.len()))?;
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let wanted =
            if index == 0 { first.unwrap_or(false) } else { blank.unwrap_or(false) || !line.is_empty() };
        if wanted {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn center(state: &mut State<'_, '_>, value: &Value, width: Option<i64>) -> Result<Value, Error> {
    let text = Value::from(text::str(value)?);
    methods::method(state, &text, "center", &[Value::from(width.unwrap_or(80))])
}

/// Words as Python's `\w+` finds them.
fn words(text: &str) -> usize {
    text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty()).count()
}

/// `int(default=0, base=10)`: what is no number is the default.
fn int(state: &mut State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let named = by_name(args, &["default", "base"])?;
    number(state, value, &named, Value::from_function(filters::int), Value::from(0))
}

/// `float(default=0.0)`: what is no number is the default.
fn float(state: &mut State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let named = by_name(args, &["default"])?;
    number(state, value, &named, Value::from_function(filters::float), Value::from(0.0))
}

#[expect(clippy::needless_pass_by_value, reason = "both are made for this call")]
fn number(
    state: &mut State<'_, '_>,
    value: &Value,
    named: &Kwargs,
    builtin: Value,
    otherwise: Value,
) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let default: Option<Value> = named.get("default")?;
    let base: Option<u32> = named.get("base")?;
    named.assert_all_used()?;
    let by: Kwargs = base.map(|base| ("base", Value::from(base))).into_iter().collect();
    let read = builtin.call(state, &[value.clone(), Value::from(by)]);
    Ok(match read {
        Ok(number) if !value.is_none() => number,
        _ => default.unwrap_or(otherwise),
    })
}

/// `default(value='', boolean=false)`
fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let named = by_name(args, &["default_value", "boolean"])?;
    let otherwise: Option<Value> = named.get("default_value")?;
    let boolean = named.get::<Option<bool>>("boolean")?.unwrap_or(false);
    named.assert_all_used()?;
    if value.is_undefined() || (boolean && !value.is_true()) {
        return Ok(otherwise.unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

/// Escapes for HTML, spelled as MarkupSafe does.
fn escape(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for character in text::str(value)?.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(character),
        }
    }
    budget::text(state, out)
}

/// Whether a value has a length and items by number: in Jinja2 a text and a dictionary do too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
        || (value.kind() == ValueKind::Iterable && value.len().is_some())
}

fn is_callable(value: &Value) -> bool {
    // Functions and macros are the only plain objects, and an undefined value refuses when it is called.
    matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
}

/// `dict(pairs, key=value, …)`
fn dict(state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    for value in charge(state, args)? {
        let is_map = value.kind() == ValueKind::Map;
        for item in run_through(&value)? {
            if is_map {
                let named = value.get_item(&item)?;
                pairs.push((item, named));
            } else if item.len() == Some(2) {
                pairs.push((item.get_item_by_index(0)?, item.get_item_by_index(1)?));
            } else {
                return Err(wrong("pairs are wanted"));
            }
        }
    }
    Ok(Value::from_pairs(pairs))
}
