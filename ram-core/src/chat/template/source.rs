//! A template's source, from Jinja2 as transformers reads it into what minijinja reads alike.
//!
//! Four things are rewritten. White space stands as it did, and so do the lines.
//! - Line ends are `\n`, as Jinja2's lexer makes them.
//! - `{% generation %}` blocks, which mark the assistant's words for training, are `{% with %}` blocks: the same scope.
//! - Escapes in string literals that minijinja spells otherwise or not at all (`\UXXXXXXXX`, `\a`, `\/`).
//! - The operators `+`, `~`, `*` and `%`, and what a loop runs through, are calls of the functions that
//!   [`super::operators`] defines: they format, they refuse to run through none, and they keep a budget.
//!
//! Nothing is refused here: what is no template is left for the parser to say so.

/// Names of the functions that operators become. No caller's variable may hide them.
pub(super) const ADD: &str = "__add";
/// See [`ADD`].
pub(super) const CONCAT: &str = "__concat";
/// See [`ADD`].
pub(super) const MULTIPLY: &str = "__multiply";
/// See [`ADD`].
pub(super) const MODULO: &str = "__modulo";
/// See [`ADD`].
pub(super) const ITERATE: &str = "__iterate";

/// Operands that one call takes; a longer chain is nested.
const OPERANDS_MAX: usize = 200;

/// Line ends as Jinja2's lexer makes them.
pub(super) fn plain_lines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// The source that minijinja reads.
pub(super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let taken = if rest.starts_with("{#") {
            copy(&mut out, rest, rest.find("#}").map(|end| end + 2))
        } else if rest.starts_with("{%") {
            match raw_end(rest) {
                Some(end) => copy(&mut out, rest, Some(end)),
                None => tag(&mut out, rest, "%}"),
            }
        } else if rest.starts_with("{{") {
            tag(&mut out, rest, "}}")
        } else {
            copy(&mut out, rest, Some(1))
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// Copies what ends at `end`, or all that is left.
fn copy(out: &mut String, rest: &str, end: Option<usize>) -> usize {
    let end = end.unwrap_or(rest.len());
    out.push_str(&rest[..end]);
    end
}

/// What a tag says first, without the marks of white space around it.
fn inside(tag: &str) -> &str {
    tag[2..].trim_start_matches(['-', '+']).trim_start()
}

/// Whether a tag holds this one word.
fn says(tag: &str, word: &str) -> bool {
    let after = inside(tag).strip_prefix(word).map(|after| after.trim_start().trim_start_matches(['-', '+']));
    after.is_some_and(|after| after.starts_with("%}"))
}

/// Where the block `{% raw %}`, which a source begins with, ends its last tag's opening.
fn raw_end(source: &str) -> Option<usize> {
    if !says(source, "raw") {
        return None;
    }
    let ends = source.match_indices("{%").map(|(at, _)| at);
    let last = ends.into_iter().find(|at| says(&source[*at..], "endraw"));
    Some(last.map_or(source.len(), |at| source[at..].find("%}").map_or(source.len(), |end| at + end + 2)))
}

/// Rewrites the tag that a source begins with, and says how long it was.
fn tag(out: &mut String, source: &str, end: &'static str) -> usize {
    for (word, plain) in [("generation", "with"), ("endgeneration", "endwith")] {
        if end == "%}" && says(source, word) {
            let name = source.len() - inside(source).len();
            out.push_str(&source[..name]);
            out.push_str(plain);
            return name + word.len();
        }
    }
    let mut tag = Tag {
        pieces: Vec::new(),
        levels: vec![Level::default()],
        after: After::Operator,
        named: false,
        loops: None,
    };
    let mark = source[2..].starts_with(['-', '+']);
    let mut at = 2 + usize::from(mark);
    tag.pieces.push(Piece::new(&source[..at]));
    tag.begin();
    while at < source.len() {
        let rest = &source[at..];
        let marked = rest.strip_prefix(['-', '+']).is_some_and(|rest| rest.starts_with(end));
        if tag.levels.len() == 1 && (marked || rest.starts_with(end)) {
            break;
        }
        at += tag.token(rest, end == "%}");
    }
    tag.end_iteration();
    tag.close(0);
    let mut opens = Vec::new();
    for mut piece in tag.pieces {
        piece.opens.append(&mut opens);
        if piece.text.chars().all(char::is_whitespace) {
            // A call opens where its first operand begins.
            opens = piece.opens;
        } else {
            piece.opens.iter().rev().for_each(|open| {
                out.push_str(open);
                out.push('(');
            });
        }
        out.push_str(&piece.text);
    }
    // What is left of the tag holds nothing to rewrite; without an end it is the rest of the source.
    at
}

/// A token of a tag, with the calls that open before it: the later one stands outside of the earlier.
struct Piece {
    opens: Vec<&'static str>,
    text: String,
}

impl Piece {
    fn new(text: &str) -> Self {
        Self { opens: Vec::new(), text: text.to_owned() }
    }
}

/// What the token before was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// Something that wants an operand: `+` is a sign, and `*` unpacks.
    Operator,
    /// The end of an operand: `+` adds.
    Operand,
    /// `.` or `|`: a name follows that is no keyword.
    Member,
    /// `is`: the name of a test follows.
    Is,
}

/// How strongly an operator binds, from the weakest.
const SUM: usize = 0;
const JOIN: usize = 1;
const PRODUCT: usize = 2;

/// One pair of brackets, or the tag itself.
#[derive(Clone, Copy, Default)]
struct Level {
    /// For each strength, where the chain of operands began that is being read.
    starts: [usize; 3],
    /// For each strength, the call that waits for its last operand, and its operands so far.
    open: [Option<(&'static str, usize)>; 3],
    /// Whether this is what a loop runs through.
    iterated: bool,
}

struct Tag {
    pieces: Vec<Piece>,
    levels: Vec<Level>,
    after: After,
    /// Whether a block's first word was read.
    named: bool,
    /// Of a loop's tag, whether it was said what it runs through.
    loops: Option<bool>,
}

impl Tag {
    fn level(&mut self) -> &mut Level {
        // A level is pushed before the first token, and never the last one popped.
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    fn push(&mut self, text: &str, after: After) {
        self.pieces.push(Piece::new(text));
        self.after = after;
    }

    /// A new chain of each strength begins here.
    fn begin(&mut self) {
        let here = self.pieces.len();
        self.level().starts = [here; 3];
    }

    /// Closes the calls of this strength and of stronger ones.
    fn close(&mut self, strength: usize) {
        for at in (strength..3).rev() {
            if self.level().open[at].take().is_some() {
                // A missing operand is told to the parser, which would let a trailing comma pass.
                let missing = self.after == After::Operator;
                self.pieces.push(Piece::new(if missing { ",)" } else { ")" }));
            }
        }
    }

    /// Ends what a loop runs through.
    fn end_iteration(&mut self) {
        if self.levels.len() == 1 && self.level().iterated {
            self.close(0);
            self.level().iterated = false;
            self.pieces.push(Piece::new(")"));
        }
    }

    /// Reads one token, and says how long it was.
    fn token(&mut self, rest: &str, block: bool) -> usize {
        let first = rest.chars().next().unwrap_or(' ');
        let one = &rest[..first.len_utf8()];
        match first {
            _ if first.is_whitespace() => self.pieces.push(Piece::new(one)),
            '\'' | '"' => return self.literal(rest, first),
            '0'..='9' => {
                let number = number(rest, self.after == After::Member);
                self.push(number, After::Operand);
                return number.len();
            }
            _ if first == '_' || first.is_alphanumeric() => {
                let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                self.word(&rest[..end], block);
                return end;
            }
            '(' | '[' | '{' => {
                self.push(one, After::Operator);
                self.levels.push(Level::default());
                self.begin();
            }
            ')' | ']' | '}' if self.levels.len() > 1 => {
                self.close(0);
                self.levels.pop();
                self.push(one, After::Operand);
            }
            '.' | '|' => self.push(one, After::Member),
            _ => return self.operator(rest),
        }
        one.len()
    }

    fn word(&mut self, word: &str, block: bool) {
        if block && !self.named {
            self.named = true;
            self.loops = (word == "for").then_some(false);
            self.push(word, After::Operator);
            return self.begin();
        }
        match (self.after, word) {
            (After::Member, _) => self.push(word, After::Operand),
            (After::Is, "not") | (After::Operand, "is") => self.push(word, After::Is),
            (After::Is, _) => self.push(word, After::Operand),
            (_, "if" | "recursive") if self.levels.len() == 1 && self.level().iterated => {
                self.end_iteration();
                self.push(word, After::Operator);
                self.begin();
            }
            (_, "and" | "or" | "not" | "if" | "else" | "in") => {
                self.close(0);
                self.push(word, After::Operator);
                if word == "in" && self.levels.len() == 1 && self.loops == Some(false) {
                    self.loops = Some(true);
                    self.level().iterated = true;
                    [" ", ITERATE, "("].into_iter().for_each(|text| self.pieces.push(Piece::new(text)));
                }
                self.begin();
            }
            _ => self.push(word, After::Operand),
        }
    }

    fn operator(&mut self, rest: &str) -> usize {
        let infix = self.after == After::Operand;
        for (text, strength, call) in [
            ("//", Some(PRODUCT), None),
            ("**", None, None),
            ("*", Some(PRODUCT), Some(MULTIPLY)),
            ("/", Some(PRODUCT), None),
            ("%", Some(PRODUCT), Some(MODULO)),
            ("~", Some(JOIN), Some(CONCAT)),
            ("+", Some(SUM), Some(ADD)),
            ("-", Some(SUM), None),
        ] {
            if !rest.starts_with(text) {
                continue;
            }
            match strength {
                Some(strength) if infix => self.infix(text, strength, call),
                // Python has this sign for numbers, which it leaves as they are; minijinja does not have it.
                _ if text == "+" => self.pieces.push(Piece::new(" ")),
                _ => {
                    self.push(text, After::Operator);
                    if text.starts_with('*') && !infix {
                        self.begin();
                    }
                }
            }
            return text.len();
        }
        // Whatever else it is, it binds less: comparisons, commas, colons, assignments.
        let length = rest.chars().next().map_or(1, char::len_utf8);
        self.close(0);
        self.push(&rest[..length], After::Operator);
        self.begin();
        length
    }

    fn infix(&mut self, text: &str, strength: usize, call: Option<&'static str>) {
        self.close(strength + 1);
        let open = self.level().open[strength];
        match (open, call) {
            // These take any number of operands, so that a long chain nests no deeper.
            (Some((name, operands)), Some(call))
                if name == call && strength != PRODUCT && operands < OPERANDS_MAX =>
            {
                self.level().open[strength] = Some((name, operands + 1));
                self.push(", ", After::Operator);
            }
            _ => {
                self.close(strength);
                let start = self.level().starts[strength];
                match call {
                    Some(call) => {
                        self.pieces[start].opens.push(call);
                        self.level().open[strength] = Some((call, 2));
                        self.push(", ", After::Operator);
                    }
                    None => {
                        self.push(text, After::Operator);
                    }
                }
            }
        }
        let here = self.pieces.len();
        self.level().starts[strength + 1..].fill(here);
    }

    /// A string literal, with escapes that minijinja reads as Python does.
    fn literal(&mut self, rest: &str, quote: char) -> usize {
        let mut text = String::from(quote);
        let mut characters = rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                _ if character == quote => {
                    text.push(quote);
                    self.push(&text, After::Operand);
                    return at + 1;
                }
                '\\' => {
                    let escape = escape(&rest[at..]);
                    text.push_str(&escape.plain);
                    for _ in 1..escape.length {
                        characters.next();
                    }
                }
                _ => text.push(character),
            }
        }
        self.push(rest, After::Operand);
        rest.len()
    }
}

/// The number that a text begins with; behind a point it is an index, and has no fraction.
fn number(rest: &str, index: bool) -> &str {
    let digits = |from: usize| {
        let all = rest[from..].find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
        all.map_or(rest.len(), |end| from + end)
    };
    let is_digit = |at: usize| rest[at..].starts_with(|c: char| c.is_ascii_digit());
    let mut end = digits(0);
    if !index && rest[end..].starts_with('.') && is_digit(end + 1) {
        end = digits(end + 1);
    }
    let hexadecimal = rest.starts_with("0x") || rest.starts_with("0X");
    if !hexadecimal
        && rest[..end].ends_with(['e', 'E'])
        && rest[end..].starts_with(['-', '+'])
        && is_digit(end + 1)
    {
        end = digits(end + 1);
    }
    &rest[..end]
}

/// An escape of a string literal.
struct Escape {
    /// As minijinja reads it.
    plain: String,
    /// How many characters of the source it is.
    length: usize,
}

/// The escape that a text begins with, by the rules of Python's `unicode-escape`.
fn escape(rest: &str) -> Escape {
    /// An escape that no parser takes.
    const REFUSED: &str = "\\x";
    let code = |text: &str, radix| u32::from_str_radix(text, radix).ok().and_then(char::from_u32);
    let spelled = |character: Option<char>| match character {
        Some(character) if character.is_ascii() => format!("\\x{:02x}", u32::from(character)),
        Some(character) => character.to_string(),
        None => REFUSED.to_owned(),
    };
    let Some(kind) = rest[1..].chars().next() else {
        return Escape { plain: rest.to_owned(), length: 1 };
    };
    match kind {
        '\n' => Escape { plain: String::new(), length: 2 },
        'a' => Escape { plain: "\\x07".to_owned(), length: 2 },
        'v' => Escape { plain: "\\x0b".to_owned(), length: 2 },
        '/' => Escape { plain: "\\\\/".to_owned(), length: 2 },
        'N' => Escape { plain: REFUSED.to_owned(), length: 2 },
        'U' => {
            let digits = rest.get(2..10).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
            Escape {
                plain: spelled(digits.and_then(|digits| code(digits, 16))),
                length: 2 + digits.map_or(0, str::len),
            }
        }
        '0'..='7' => {
            let digits = rest[1..].bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
            Escape { plain: spelled(code(&rest[1..=digits], 8)), length: 1 + digits }
        }
        _ => Escape { plain: ['\\', kind].iter().collect(), length: 2 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expected: &str) {
        assert_eq!(rewrite(source), expected);
    }

    #[test]
    fn operators_become_calls_that_bind_as_in_jinja2() {
        for (source, expected) in [
            ("{{ a + b }}", "{{ __add(a ,  b )}}"),
            ("{{ a + }}", "{{ __add(a ,  ,)}}"),
            ("{{a+b+c}}", "{{__add(a, b, c)}}"),
            ("{{a-b+c-d}}", "{{__add(a-b, c)-d}}"),
            ("{{a+b*c~d%e}}", "{{__add(a, __concat(__multiply(b, c), __modulo(d, e)))}}"),
            ("{{a*b%c/d*e}}", "{{__multiply(__modulo(__multiply(a, b), c)/d, e)}}"),
            ("{{ -a+-b}}", "{{ __add(-a, -b)}}"),
            ("{{ +a ** 2 }}", "{{  a ** 2 }}"),
            ("{{(a+b)|f(c+d,e)+g}}", "{{__add((__add(a, b))|f(__add(c, d),e), g)}}"),
            ("{{a==b+c}}", "{{a==__add(b, c)}}"),
            ("{{a if b%2 else c%3}}", "{{a if __modulo(b, 2 )else __modulo(c, 3)}}"),
            ("{{f(*a, **b)}}", "{{f(*a, **b)}}"),
            ("{{1e-7+x.if%2}}", "{{__add(1e-7, __modulo(x.if, 2))}}"),
            ("{%- if a is not none and b%2 -%}", "{%- if a is not none and __modulo(b, 2 )-%}"),
        ] {
            check(source, expected);
        }
    }

    #[test]
    fn what_a_loop_runs_through_is_asked_first() {
        for (source, expected) in [
            ("{% for a in b %}", "{% for a in __iterate( b )%}"),
            ("{% for a,b in c.items() if a in b %}", "{% for a,b in __iterate( c.items() )if a in b %}"),
            ("{%for a in b+c recursive-%}", "{%for a in __iterate( __add(b, c ))recursive-%}"),
            ("{% for a in (b if c else d) %}", "{% for a in __iterate( (b if c else d) )%}"),
        ] {
            check(source, expected);
        }
    }

    #[test]
    fn what_is_no_operator_stays() {
        for source in [
            "a + b {% c",
            "{# a + b #}",
            "{% raw %}{{ a + b }}{% endraw %}",
            "{{ 'a + b' }}{{ \"%}\" }}",
            "{{ {'a': {'b': 1}} }}",
            "{% set a = b.c['d'][1:] -%}",
            "{{ a < b }} {{ a / b - c // d }}",
            "{",
            "{{ 'a",
            "{{ ((",
        ] {
            check(source, source);
        }
    }

    #[test]
    fn generation_is_a_scope() {
        check("{%- generation +%}x{%endgeneration%}", "{%- with +%}x{%endwith%}");
        check("{% generations %}", "{% generations %}");
    }

    #[test]
    fn escapes_are_those_of_python() {
        for (source, expected) in [
            (r"'\n\x41\u00e9\\\''", r"'\n\x41\u00e9\\\''"),
            (r"'\U0001f980\U00000027'", r"'🦀\x27'"),
            (r"'\101\0\777\78'", r"'\x41\x00ǿ\x078'"),
            (r"'\/\a\v\q'", r"'\\/\x07\x0b\q'"),
            ("'a\\\nb'", "'ab'"),
            (r"'\N{BULLET}\Ux'", r"'\x{BULLET}\xx'"),
        ] {
            check(&format!("{{{{{source}}}}}"), &format!("{{{{{expected}}}}}"));
        }
    }

    #[test]
    fn a_chain_without_end_takes_no_time() {
        let long = format!("{{{{ a{} }}}}", "%a+a".repeat(10_000));
        assert!(rewrite(&long).len() > long.len());
    }
}
