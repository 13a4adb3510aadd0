//! Text of others, made fit for a terminal and for one line of a log.

/// Longest text that is shown: a reason of each of 64 models fits, a page does not.
const SHOWN_CHARS_MAX: usize = 4000;

/// The text without what a terminal would obey: escape sequences lose their first character, line ends become spaces,
/// and signs that turn the direction of writing are left out. What is over the limit is cut.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = text.chars().filter_map(|sign| match sign {
        '\n' | '\t' => Some(' '),
        sign if sign.is_control() || turns_or_hides(sign) => None,
        sign => Some(sign),
    });
    let mut plain: String = shown.by_ref().take(SHOWN_CHARS_MAX).collect();
    if shown.next().is_some() {
        plain.push('…');
    }
    plain
}

/// Signs without a width, which turn the direction of writing or hide between others (Unicode TR 36, section 2.5).
const fn turns_or_hides(sign: char) -> bool {
    matches!(sign, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_but_text() {
        let check = |text: &str, expected: &str| assert_eq!(plain(text), expected);
        check("`qwen3-8b` är för stor: 5 GiB", "`qwen3-8b` är för stor: 5 GiB");
        check("\x1b[2J\x1b]0;owned\x07gone", "[2J]0;ownedgone");
        check("\u{9b}31mred", "31mred");
        check("one\r\ntwo\tthree", "one two three");
        check("abc\u{202E}fed\u{200B}", "abcfed");
    }

    #[test]
    fn a_page_is_cut() {
        let shown = plain(&"x".repeat(SHOWN_CHARS_MAX + 1));
        assert!(shown.chars().count() == SHOWN_CHARS_MAX + 1 && shown.ends_with('…'));
        assert_eq!(plain(&shown[..SHOWN_CHARS_MAX]).len(), SHOWN_CHARS_MAX);
    }
}
