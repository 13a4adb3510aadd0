//! Python's `strftime`, in UTC and the C locale.

use std::str::Chars;

use crate::units::Timestamp;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From the day of 1970-01-01 on.
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `strftime` of an instant in UTC, in the C locale. Unknown directives stay as they are.
pub(super) fn strftime(instant: Timestamp, format: &str) -> String {
    let date = Date::of(instant);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut ahead = rest.clone();
        let flag = ahead.next().filter(|flag| matches!(flag, '-' | '_' | '0' | '^'));
        let letter = if flag.is_some() { ahead.next() } else { rest.clone().next() };
        match letter.and_then(|letter| date.field(letter)) {
            Some(field) => {
                out.push_str(&flagged(&field, flag));
                rest = if flag.is_some() { ahead } else { skip_one(rest) };
            }
            None => out.push('%'),
        }
    }
    out
}

fn skip_one(mut rest: Chars<'_>) -> Chars<'_> {
    rest.next();
    rest
}

/// A field as glibc's flags want it: `-` without what fills it up, `_` filled with spaces, `0` with zeros.
fn flagged(field: &str, flag: Option<char>) -> String {
    let fill = |c| c == '0' || c == ' ';
    let short = match field.trim_start_matches(fill) {
        "" => &field[field.len().saturating_sub(1)..],
        short => short,
    };
    let filled = |with: &str| with.repeat(field.len() - short.len()) + short;
    match flag {
        Some('-') => short.to_owned(),
        Some('_') => filled(" "),
        Some('0') => filled("0"),
        Some('^') => field.to_uppercase(),
        _ => field.to_owned(),
    }
}

/// An instant by the calendar and the clock.
struct Date {
    instant: Timestamp,
    year: u64,
    month: u64,
    day: u64,
    /// Days since 1970-01-01, a Thursday.
    days: u64,
    /// From 0.
    day_of_year: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Date {
    fn of(instant: Timestamp) -> Self {
        let (days, second_of_day) = (instant.as_secs() / 86_400, instant.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        Self {
            instant,
            year,
            month,
            day,
            days,
            day_of_year: days - days_before(year),
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// What a directive stands for, if there is such a one.
    fn field(&self, letter: char) -> Option<String> {
        let Self { year, month, day, hour, minute, second, .. } = self;
        let hour_12 = (hour + 11) % 12 + 1;
        let from_sunday = (self.days + 4) % 7;
        let week_from = |first_day: u64| (self.day_of_year + 7 - (from_sunday + 7 - first_day) % 7) / 7;
        Some(match letter {
            'Y' => year.to_string(),
            'C' => format!("{:02}", year / 100),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'H' => format!("{hour:02}"),
            'k' => format!("{hour:2}"),
            'I' => format!("{hour_12:02}"),
            'l' => format!("{hour_12:2}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => format!("{:06}", self.instant.as_millis() % 1000 * 1000),
            's' => self.instant.as_secs().to_string(),
            'j' => format!("{:03}", self.day_of_year + 1),
            'p' => if *hour < 12 { "AM" } else { "PM" }.to_owned(),
            'P' => if *hour < 12 { "am" } else { "pm" }.to_owned(),
            'B' => pick(&MONTHS, month - 1).to_owned(),
            'b' | 'h' => pick(&MONTHS, month - 1)[..3].to_owned(),
            'A' => pick(&WEEKDAYS, self.days % 7).to_owned(),
            'a' => pick(&WEEKDAYS, self.days % 7)[..3].to_owned(),
            'w' => from_sunday.to_string(),
            'u' => ((from_sunday + 6) % 7 + 1).to_string(),
            'U' => format!("{:02}", week_from(0)),
            'W' => format!("{:02}", week_from(1)),
            'V' => format!("{:02}", self.iso_week().1),
            'G' => self.iso_week().0.to_string(),
            'g' => format!("{:02}", self.iso_week().0 % 100),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'D' | 'x' => format!("{month:02}/{day:02}/{:02}", year % 100),
            'T' | 'X' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'r' => format!("{hour_12:02}:{minute:02}:{second:02} {}", if *hour < 12 { "AM" } else { "PM" }),
            'c' => ['a', 'b', 'e', 'T', 'Y']
                .iter()
                .filter_map(|letter| self.field(*letter))
                .collect::<Vec<_>>()
                .join(" "),
            // Python's instants without a zone have no name of one.
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    /// Year and week of ISO 8601: a week belongs to the year of its Thursday.
    fn iso_week(&self) -> (u64, u64) {
        // 1970-01-01 was a Thursday, so three days on from a Monday is the Thursday of its week.
        let thursday = (self.days + 3) / 7 * 7;
        let (year, ..) = civil(thursday);
        (year, (thursday - days_before(year)) / 7 + 1)
    }
}

fn pick(names: &[&'static str], index: u64) -> &'static str {
    usize::try_from(index).ok().and_then(|index| names.get(index)).copied().unwrap_or("???")
}

/// Days from 1970-01-01 to the first of January of `year`, in the Gregorian calendar.
const fn days_before(year: u64) -> u64 {
    let past = year - 1;
    past * 365 + past / 4 - past / 100 + past / 400 - 719_162
}

/// Year, month (from 1) and day (from 1) of the day `days` after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // The estimate by the mean year is at most one year off.
    let estimate = 1970 + days * 400 / 146_097;
    let year = if days_before(estimate) > days {
        estimate - 1
    } else if days_before(estimate + 1) <= days {
        estimate + 1
    } else {
        estimate
    };
    let leap = u64::from(days_before(year + 1) - days_before(year) == 366);
    let mut day = days - days_before(year);
    for (month, length) in (1..).zip([31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
        if day < length {
            return (year, month, day + 1);
        }
        day -= length;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let format = "%a %d %b %Y %H:%M:%S %j %I%p %F %% %q %";
        for (secs, text) in [
            (0, "Thu 01 Jan 1970 00:00:00 001 12AM 1970-01-01 % %q %"),
            (951_782_400, "Tue 29 Feb 2000 00:00:00 060 12AM 2000-02-29 % %q %"),
            (1_735_689_599, "Tue 31 Dec 2024 23:59:59 366 11PM 2024-12-31 % %q %"),
            (4_102_444_800, "Fri 01 Jan 2100 00:00:00 001 12AM 2100-01-01 % %q %"),
        ] {
            assert_eq!(strftime(Timestamp::from_millis(secs * 1000), format), text);
        }
        let weeks = "%U %W %V %G %u %w %-d %_m %^a %c %x %k%l";
        for (secs, text) in [
            (1_795_763_920, "47 47 48 2026 5 5 27 11 FRI Fri Nov 27 07:18:40 2026 11/27/26  7 7"),
            (1_735_603_200, "52 53 01 2025 2 2 31 12 TUE Tue Dec 31 00:00:00 2024 12/31/24  012"),
            (1_609_459_200, "00 00 53 2020 5 5 1  1 FRI Fri Jan  1 00:00:00 2021 01/01/21  012"),
        ] {
            assert_eq!(strftime(Timestamp::from_millis(secs * 1000), weeks), text);
        }
        let last = strftime(Timestamp::from_millis(u64::MAX), "%Y");
        assert_eq!(last, "584556019");
    }
}
