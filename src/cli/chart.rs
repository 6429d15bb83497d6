//! Bars and sparklines of block characters, and numbers for a person.

const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// In a sparkline, where nothing is known.
const UNKNOWN: char = '·';

/// A bar of eighths: `full` columns at a `fraction` of 1, and something to see for anything above
/// 0.
pub fn bar(fraction: f64, full: usize) -> String {
    if fraction.is_nan() || fraction <= 0.0 || full == 0 {
        return String::new();
    }
    let eighths = (fraction.min(1.0) * full as f64 * 8.0).round().max(1.0) as usize;
    let mut bar: String = std::iter::repeat_n('█', eighths / 8).collect();
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

/// One character for each value, from 0 to the highest; a dot where there is none.
pub fn sparkline(values: &[Option<f64>]) -> String {
    let max = values.iter().flatten().copied().fold(0.0, f64::max);
    let level = |value: f64| {
        if max <= 0.0 || value <= 0.0 {
            return LEVELS[0];
        }
        LEVELS[((value / max) * LEVELS.len() as f64).ceil().clamp(1.0, 8.0) as usize - 1]
    };
    values.iter().map(|value| value.map_or(UNKNOWN, level)).collect()
}

/// The values in at most `columns` groups of neighbours, each with its highest.
pub fn squeeze(values: &[Option<f64>], columns: usize) -> Vec<Option<f64>> {
    if values.len() <= columns || columns == 0 {
        return values.to_vec();
    }
    let bounds = |index: usize| index * values.len() / columns;
    let group = |index: usize| &values[bounds(index)..bounds(index + 1)];
    (0..columns).map(|index| group(index).iter().flatten().copied().reduce(f64::max)).collect()
}

/// A number with its thousands set apart, `-1234567.5` as `-1,234,567.5`. Anything else comes back
/// as it is.
pub fn grouped(number: &str) -> String {
    let unsigned = number.strip_prefix('-').unwrap_or(number);
    let whole = unsigned.len() - unsigned.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if unsigned[whole..].contains(['e', 'E']) {
        return number.to_owned();
    }
    let mut text = number[..number.len() - unsigned.len()].to_owned();
    for (index, digit) in unsigned[..whole].chars().enumerate() {
        if index > 0 && (whole - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + &unsigned[whole..]
}

/// `1 event`, `1,200 events`.
pub fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(&count.to_string()), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_eighths() {
        assert_eq!(bar(1.0, 3), "███");
        assert_eq!(bar(0.5, 3), "█▌");
        assert_eq!(bar(0.000_1, 3), "▏");
        assert_eq!(bar(7.0, 2), "██");
        assert_eq!((bar(0.0, 3), bar(-1.0, 3), bar(f64::NAN, 3)), (String::new(), String::new(), String::new()));
    }

    #[test]
    fn sparklines_go_from_nothing_to_the_highest() {
        let values: Vec<_> = (0..=8).map(|value| Some(f64::from(value))).collect();
        assert_eq!(sparkline(&values), "▁▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[Some(0.0), None, Some(-5.0)]), "▁·▁");
        assert_eq!(sparkline(&[]), "");
    }

    #[test]
    fn squeezed_values_keep_their_peaks() {
        let values: Vec<_> = [1.0, 9.0, 2.0, 3.0, 4.0].into_iter().map(Some).collect();
        assert_eq!(squeeze(&values, 2), [Some(9.0), Some(4.0)]);
        assert_eq!(squeeze(&values, 9), values);
        assert_eq!(squeeze(&[None, None, Some(1.0)], 2), [None, Some(1.0)]);
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in
            [("0", "0"), ("999", "999"), ("1000", "1,000"), ("-1234567.25", "-1,234,567.25"), ("1e300", "1e300")]
        {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(counted(1, "event"), "1 event");
        assert_eq!(counted(2000, "event"), "2,000 events");
    }
}
