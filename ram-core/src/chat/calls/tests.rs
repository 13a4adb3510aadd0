//! Calls as the families write them, and what only looks like one.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn tools() -> Vec<Tool> {
    let functions = json!([
        {"name": "get_weather", "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "when": {"type": ["string", "null"]},
            "exact": {"type": "boolean"}, "at": {"type": "array"}, "more": {"type": "object"},
            "limit": {"anyOf": [{"type": "number"}, {"type": "null"}]}}}},
        {"name": "now"},
    ]);
    serde_json::from_value(functions).unwrap()
}

fn filter_with<'a>(
    format: Format,
    parallel: Parallel,
    parts: impl IntoIterator<Item = &'a str>,
) -> (String, Vec<(String, String)>) {
    let mut filter = CallFilter::new(format, tools(), parallel, JobId::from_bits(7));
    let (mut content, mut calls, mut ids) = (String::new(), Vec::new(), Vec::new());
    let mut take = |found: Found| {
        content += &found.content;
        for call in found.calls {
            ids.push(call.id.into_string());
            calls.push((call.name.into_string(), call.arguments.into_string()));
        }
    };
    parts.into_iter().for_each(|part| take(filter.push(part)));
    take(filter.finish());
    let expected: Vec<String> =
        (0..).take(ids.len()).map(|index| call_id(JobId::from_bits(7), index)).collect();
    assert_eq!(ids, expected);
    (content, calls)
}

fn filter<'a>(format: Format, parts: impl IntoIterator<Item = &'a str>) -> (String, Vec<(String, String)>) {
    filter_with(format, Parallel::Many, parts)
}

#[track_caller]
fn check(format: Format, text: &str, content: &str, calls: &[(&str, &str)]) {
    let calls: Vec<_> = calls.iter().map(|(name, args)| ((*name).to_owned(), (*args).to_owned())).collect();
    let expected = (content.to_owned(), calls);
    assert_eq!(filter(format, [text]), expected, "{text:?}");
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(filter(format, letters.iter().map(String::as_str)), expected, "{text:?}, letter by letter");
}

#[test]
fn a_format_is_known_by_its_marks_in_the_template() {
    let check = |source: &str, format| assert_eq!(Format::of_template(source), format, "{source}");
    check("{{ '<tool_call>\\n' }}{% for x in tools %}", Format::Tags);
    check("<tool_call>\\n<function=example_function_name>", Format::Tags);
    check("{{ \"[TOOL_CALLS] [\" }}", Format::Mistral);
    check("{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type']}}", Format::DeepSeek);
    check("{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}", Format::Llama);
    check("{{ tools }}", Format::Llama);
}

#[test]
fn qwen_and_hermes_write_json_between_tags() {
    let check = |text, content, calls: &[_]| check(Format::Tags, text, content, calls);
    let weather = ("get_weather", r#"{"city": "Paris", "days": 2}"#);
    check(
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 2}}\n</tool_call>",
        "",
        &[weather],
    );
    check(
        "I look.\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"arguments\": \
         {\"city\": \"Paris\", \"days\": 2}, \"name\": \"get_weather\"}\n</tool_call>\n",
        "I look.",
        &[("now", "{}"), weather],
    );
    check("<tool_call>{\"name\":\"now\"}</tool_call> Done.", "Done.", &[("now", "{}")]);
    check("<tool_call>{\"name\":\"now\",\"arguments\":null}</tool_call>", "", &[("now", "{}")]);
    // The last closing tag is often left out, and a text may quote one.
    check("<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n", "", &[("now", "{}")]);
    check(
        "<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"</tool_call>\"}}</tool_call>",
        "",
        &[("get_weather", "{\"city\":\"</tool_call>\"}")],
    );
    check(
        "<tool_call>{\"name\":\"now\",\"arguments\":\"{\\\"a\\\":1}\"}</tool_call>",
        "",
        &[("now", "{\"a\":1}")],
    );
    // Numbers stay as they were written.
    check(
        "<tool_call>{\"name\":\"now\",\"arguments\":{\"x\":1e2,\"y\":18446744073709551616}}</tool_call>",
        "",
        &[("now", "{\"x\":1e2,\"y\":18446744073709551616}")],
    );
}

#[test]
fn qwen_coder_writes_tags_for_each_parameter() {
    let check = |text: &str, calls: &[_]| check(Format::Tags, text, "", calls);
    check(
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nSão Paulo\n</parameter>\n<parameter=days>\n2\n\
         </parameter>\n</function>\n</tool_call>",
        &[("get_weather", r#"{"city":"São Paulo","days":2}"#)],
    );
    check("<tool_call>\n<function=now>\n</function>\n</tool_call>", &[("now", "{}")]);
    check("<tool_call>\n<function=now>\n</function>", &[("now", "{}")]);
    let value = |key: &str, text: &str, value: &str| {
        let written = format!(
            "<tool_call>\n<function=get_weather>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
        );
        self::check(Format::Tags, &written, "", &[("get_weather", &format!("{{\"{key}\":{value}}}"))]);
    };
    value("city", "12", "\"12\"");
    value("city", "null", "\"null\"");
    value("city", "a\n\n  b\n", "\"a\\n\\n  b\\n\"");
    value("city", "</parameter> is a tag", "\"</parameter> is a tag\"");
    value("days", "two", "\"two\"");
    value("days", "2.5", "\"2.5\"");
    value("exact", "True", "true");
    value("exact", "false", "false");
    value("when", "null", "null");
    value("when", "noon", "\"noon\"");
    value("limit", "1.5", "1.5");
    value("limit", "None", "null");
    value("at", "[1, \"a\"]", "[1,\"a\"]");
    value("more", "{\"b\": {\"a\": 1}}", "{\"b\":{\"a\":1}}");
    value("unknown", "7", "\"7\"");
}

#[test]
fn llama_writes_nothing_but_json() {
    let check = |text, content, calls: &[_]| check(Format::Llama, text, content, calls);
    let weather = ("get_weather", r#"{"city": "Paris"}"#);
    check("{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}", "", &[weather]);
    check(
        "\n <|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}\n",
        "",
        &[weather],
    );
    check(
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}; {\"name\": \"now\", \"parameters\": {}}",
        "",
        &[weather, ("now", "{}")],
    );
    check("{\"name\": \"now\", \"arguments\": {}};", "", &[("now", "{}")]);
    for text in [
        "{\"name\": \"now\", \"parameters\": {}} is what I call",
        "{\"name\": \"now\", \"parameters\": {}} {\"name\": \"now\", \"parameters\": {}}",
        "I call {\"name\": \"now\", \"parameters\": {}}",
        "{\"name\": \"now\", \"parameters\": {}, \"arguments\": {}}",
        "{\"answer\": 42}",
        "{ not json",
        "<|python_tag|>brave_search.call(query=\"x\")",
        "<|python_tag|>",
        "\n\n{",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn mistral_writes_a_list_or_a_name_behind_its_mark() {
    let check = |text, content, calls: &[_]| check(Format::Mistral, text, content, calls);
    let weather = ("get_weather", r#"{"city": "Paris"}"#);
    check("[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]", "", &[weather]);
    check(
        "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}, \"id\": \"VvvODy9mT\"}, {\"name\": \"get_weather\", \
         \"arguments\": {\"city\": \"Paris\"}}]",
        "",
        &[("now", "{}"), weather],
    );
    check("[TOOL_CALLS]{\"name\": \"now\", \"arguments\": {}}", "", &[("now", "{}")]);
    check(
        "Let me see. [TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]now[CALL_ID]abc[ARGS] {}",
        "Let me see.",
        &[weather, ("now", "{}")],
    );
    for text in [
        "[TOOL_CALLS] []",
        "[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"unknown\", \"arguments\": {}}]",
        "[TOOL_CALLS] [{\"name\": \"now\"",
        "[TOOL_CALLS]now[ARGS]no",
        "[TOOL_CALLS]now",
        "[TOOL_CALLS] is how I call, [and so on]",
        "[TOOL_CALLS]",
        "[TOOL",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn deepseek_writes_a_block_of_calls() {
    let check = |text, content, calls: &[_]| check(Format::DeepSeek, text, content, calls);
    let weather = ("get_weather", r#"{"city": "Paris"}"#);
    check(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\"}\n\
         ```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>\
         <｜tool▁calls▁end｜>",
        "",
        &[weather, ("now", "{}")],
    );
    check(
        "So:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜>\
         <｜tool▁calls▁end｜>",
        "So:",
        &[weather],
    );
    check(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "",
        &[("now", "{}")],
    );
    for text in [
        "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜>now",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>no<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn what_only_looks_like_a_call_stays() {
    let deep = format!(
        "<tool_call>{{\"name\":\"now\",\"arguments\":{{\"a\":{}{}}}}}</tool_call>",
        "[".repeat(ARGUMENTS_DEPTH_MAX),
        "]".repeat(ARGUMENTS_DEPTH_MAX)
    );
    for text in [
        "the `<tool_call>{\"name\":\"now\"}</tool_call>` tag",
        "```\n<tool_call>\n{\"name\": \"now\"}\n</tool_call>\n```",
        "The <tool_call> tag and </tool_call> too",
        "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": [1]}\n</tool_call>",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}\n</tool_call>",
        "<tool_call>\n{'name': 'now'}\n</tool_call>",
        "<tool_call>\n<function=unknown>\n</function>\n</tool_call>",
        "<tool_call>\n<function=now>\n<parameter=a>\n1\n</function>\n</tool_call>",
        "<tool_call>",
        " \n<tool_",
        "  ",
        "ä<",
        deep.as_str(),
    ] {
        check(Format::Tags, text, text, &[]);
    }
}

#[test]
fn a_call_behind_what_only_looks_like_one_is_found() {
    let call = "<tool_call>{\"name\":\"now\"}</tool_call>";
    for before in ["<tool_call>", "<tool_call>{\"name\":", "<tool_call>\n<function=now>\n", "a ` b\n\n", "<"]
    {
        let words = before.trim_end();
        check(Format::Tags, &format!("{before}{call}"), words, &[("now", "{}")]);
    }
}

#[test]
fn white_space_belongs_to_the_calls_beside_it() {
    let call = "<tool_call>{\"name\":\"now\"}</tool_call>";
    let now = ("now", "{}");
    check(Format::Tags, &format!("\n\n{call}\n\n{call} \n"), "", &[now, now]);
    check(Format::Tags, &format!("a \n{call}\n b \n{call}"), "ab", &[now, now]);
    let endless = " ".repeat(1000);
    let kept = " ".repeat(1000 - BLANK_BYTES_MAX);
    check(Format::Tags, &format!("a{endless}{call}"), &format!("a{kept}"), &[now]);
    check(
        Format::Llama,
        &format!("{endless}{{\"name\":\"now\"}}"),
        &format!("{endless}{{\"name\":\"now\"}}"),
        &[],
    );
}

#[test]
fn what_is_held_back_has_an_end() {
    let call = |bytes: usize| {
        let body = "{\"name\":\"get_weather\",\"arguments\":{\"city\":\"\"}}";
        let marks = TAGS_BYTES + body.len();
        format!(
            "<tool_call>{}</tool_call>",
            body.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - marks)))
        )
    };
    const TAGS_BYTES: usize = "<tool_call></tool_call>".len();
    assert_eq!(filter(Format::Tags, [call(CALL_BYTES_MAX).as_str()]).1.len(), 1);
    let long = call(CALL_BYTES_MAX + 1);
    let (content, calls) = filter(Format::Tags, [long.as_str()]);
    assert!(content == long && calls.is_empty());
    let mut filter = CallFilter::new(Format::Tags, tools(), Parallel::Many, JobId::from_bits(1));
    let mut held = 0_usize;
    for piece in "<tool_call>{\"".repeat(100_000).as_bytes().chunks(1000) {
        let piece = std::str::from_utf8(piece).unwrap();
        held = held + piece.len() - filter.push(piece).content.len();
        assert!(held <= CALL_BYTES_MAX + BLANK_BYTES_MAX);
    }
}

#[test]
fn one_call_is_kept_where_one_was_asked_for() {
    let text =
        "a <tool_call>{\"name\":\"now\"}</tool_call>\n<tool_call>{\"name\":\"get_weather\"}</tool_call> b";
    let (content, calls) = filter_with(Format::Tags, Parallel::First, [text]);
    assert_eq!((content.as_str(), calls), ("ab", vec![("now".to_owned(), "{}".to_owned())]));
    let many = "<tool_call>{\"name\":\"now\"}</tool_call>".repeat(CALLS_MAX + 1);
    assert_eq!(filter(Format::Tags, [many.as_str()]).1.len(), CALLS_MAX);
}

#[test]
fn the_ids_of_calls_differ_and_are_what_mistral_takes() {
    let ids: std::collections::BTreeSet<String> = (0..64_u128)
        .flat_map(|job| (0..64).map(move |index| call_id(JobId::from_bits(job << 96), index)))
        .collect();
    assert_eq!(ids.len(), 64 * 64);
    assert!(ids.iter().all(|id| id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())));
}

#[test]
fn debug_shows_no_word_of_a_call() {
    let mut filter = CallFilter::new(Format::Tags, tools(), Parallel::Many, JobId::from_bits(1));
    let found = filter.push(
        "secret <tool_call>{\"name\":\"now\",\"arguments\":{\"secret\":1}}</tool_call><tool_call>{\"secret",
    );
    assert!(!format!("{found:?} {filter:?}").contains("secret"));
}

/// Texts made of marks, parts of marks, whole calls, and what may stand around them.
fn texts() -> impl Strategy<Value = Vec<&'static str>> {
    let parts = [
        "<tool_call>",
        "</tool_call>",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        "{\"name\": \"now\", \"arguments\": {}}",
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"}\"}}",
        "{",
        "}",
        "\"",
        "<function=now>",
        "<parameter=a>",
        "</parameter>",
        "</function>",
        "[TOOL_CALLS]",
        "[TOOL",
        "[",
        "]",
        "now",
        "[ARGS]",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "```json",
        "<|python_tag|>",
        ";",
        "`",
        "```",
        "\n",
        " ",
        "a",
        "ß",
        "<",
        "word ",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..20)
}

fn formats() -> impl Strategy<Value = Format> {
    prop::sample::select(vec![Format::Tags, Format::Mistral, Format::DeepSeek, Format::Llama])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_cut_gives_the_same(format in formats(), parts in texts()) {
        let text = parts.concat();
        let whole = filter(format, [text.as_str()]);
        prop_assert_eq!(&filter(format, parts.iter().copied()), &whole);
        let letters: Vec<String> = text.chars().map(String::from).collect();
        prop_assert_eq!(&filter(format, letters.iter().map(String::as_str)), &whole);
    }

    #[test]
    fn an_answer_without_a_call_is_untouched(format in formats(), parts in texts()) {
        let text = parts.concat();
        let (content, calls) = filter(format, [text.as_str()]);
        if calls.is_empty() {
            prop_assert_eq!(content, text);
        } else {
            // What is left is what was there, in its order.
            let mut all = text.chars();
            prop_assert!(content.chars().all(|next| all.any(|other| other == next)));
            for (name, arguments) in calls {
                prop_assert!(tools().iter().any(|tool| tool.name() == name));
                prop_assert!(serde_json::from_str::<Value>(&arguments).unwrap().is_object());
            }
        }
    }

    #[test]
    fn any_arguments_come_back_as_they_were(city in "\\PC{0,20}", days: i64) {
        let arguments = json!({"city": city, "days": days}).to_string();
        let call = vec![("get_weather".to_owned(), arguments.clone())];
        let text = format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {arguments}}}\n</tool_call>");
        prop_assert_eq!(filter(Format::Tags, [text.as_str()]), (String::new(), call.clone()));
        let text = format!("[TOOL_CALLS]get_weather[ARGS]{arguments}");
        prop_assert_eq!(filter(Format::Mistral, [text.as_str()]), (String::new(), call.clone()));
        let text = format!("{{\"name\": \"get_weather\", \"parameters\": {arguments}}}");
        prop_assert_eq!(filter(Format::Llama, [text.as_str()]), (String::new(), call));
    }
}
