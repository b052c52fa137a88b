//! Patterns of names as Go's `path.Match` reads them: `*` and `?` within a part, `[a-z]`, `\` before a letter meant as it is.

/// Read once, so that a mistake in it is told whatever there is to be matched.
pub struct Pattern(Vec<Piece>);

enum Piece {
    /// Any letters but `/`.
    Any,
    /// One letter but `/`.
    One,
    Letter(char),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// `None`: not a pattern.
    pub fn parse(text: &str) -> Option<Self> {
        let mut pieces = Vec::new();
        let mut rest = text.chars();
        while let Some(letter) = rest.next() {
            pieces.push(match letter {
                '*' => Piece::Any,
                '?' => Piece::One,
                '[' => class(&mut rest)?,
                '\\' => Piece::Letter(rest.next()?),
                letter => Piece::Letter(letter),
            });
        }
        Some(Self(pieces))
    }

    /// In time of at most the product of both lengths: what an earlier `*` could take instead, the last one could too,
    /// as neither goes over a `/`.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut piece) = (0, 0);
        // Behind the last `*`, and where the text went on after it.
        let mut last: Option<(usize, usize)> = None;
        while at < text.len() || piece < self.0.len() {
            match self.0.get(piece) {
                Some(Piece::Any) => {
                    piece += 1;
                    last = Some((piece, at));
                    continue;
                }
                Some(one) if text.get(at).is_some_and(|letter| one.is(*letter)) => {
                    (at, piece) = (at + 1, piece + 1);
                    continue;
                }
                _ => {}
            }
            // Or the last `*` takes one letter more.
            match last {
                Some((behind, from)) if text.get(from).is_some_and(|letter| *letter != '/') => {
                    last = Some((behind, from + 1));
                    (at, piece) = (from + 1, behind);
                }
                _ => return false,
            }
        }
        true
    }
}

impl Piece {
    fn is(&self, letter: char) -> bool {
        match self {
            Self::Any | Self::One => letter != '/',
            Self::Letter(own) => *own == letter,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (low..=high).contains(&&letter)) != *negated
            }
        }
    }
}

/// What is behind `[`, up to the `]` and with it. One of no letters is a mistake, as is a `-` without both ends.
fn class(rest: &mut std::str::Chars) -> Option<Piece> {
    let negated = rest.as_str().starts_with('^');
    if negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        if rest.as_str().starts_with(']') && !ranges.is_empty() {
            rest.next();
            return Some(Piece::Class { negated, ranges });
        }
        let low = member(rest)?;
        let mut high = low;
        if rest.as_str().starts_with('-') {
            rest.next();
            high = member(rest)?;
        }
        ranges.push((low, high));
    }
}

fn member(rest: &mut std::str::Chars) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        letter => Some(letter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_with_go_s_path_match() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox:latest", true),
            ("*", "user/app", false),
            ("*/*", "user/app", true),
            ("*/a*p", "user/app", true),
            ("*r/*", "user/app", true),
            ("*p", "user/app", false),
            ("*a*/b", "aa/b", true),
            ("*a*b", "a/ab", false),
            ("b[a-u]sybox", "busybox", true),
            ("b[^u]sybox", "busybox", false),
            ("b?sybox", "busybox", true),
            ("a?b", "a/b", false),
            ("b\\*", "b*", true),
            ("b\\*", "bb", false),
            ("[\\-x]", "-", true),
            ("", "", true),
            ("*", "", true),
        ] {
            let parsed = Pattern::parse(pattern).expect(pattern);
            assert_eq!(parsed.matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for pattern in ["[", "a[", "[]", "[]a]", "[a-]", "[-a]", "[a", "a\\", "[^]", "[a\\"] {
            assert!(Pattern::parse(pattern).is_none(), "{pattern}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = Pattern::parse(&"a*".repeat(60)).expect("valid");
        let began = std::time::Instant::now();
        assert!(!pattern.matches(&"a".repeat(59)));
        assert!(pattern.matches(&"a".repeat(60)));
        let backwards = Pattern::parse(&format!("{}b", "a*".repeat(60))).expect("valid");
        assert!(!backwards.matches(&"a".repeat(500)));
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }
}
