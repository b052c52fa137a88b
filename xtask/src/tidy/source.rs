//! How a source file must read, and what must not stand in it.

/// A function should fit on a screen.
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

const CORES: &[&str] = &[
    "store",
    "consensus",
    "allocator",
    "orchestrator",
    "scheduler",
    "ca",
    "manager",
    "gossip",
    "netplan",
    "dns",
    "agent",
];
/// Unsafe code is fenced in these rooms.
const UNSAFE_ROOMS: &[&str] = &["netlink", "runtime", "disk"];
/// Names that say nothing about what is inside.
const ATTICS: &[&str] = &["util", "utils", "common", "shared", "helpers", "misc"];
const CLOCKS: &[&str] = &[
    "Instant::now()",
    "SystemTime::now()",
    "OffsetDateTime::now",
    "thread::sleep",
    "std::env::var",
];

/// A broken rule at a place: `rule`, `place` (a file, or a file and a function), and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub rule: &'static str,
    pub place: String,
    pub text: String,
}

/// Everything that is wrong with one file.
pub fn check(name: &str, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |rule, place: &str, text: String| {
        faults.push(Fault { rule, place: place.to_owned(), text })
    };
    if !text.starts_with("//! ") {
        add("first-line", name, "the first line must say what the file is: //! ...".into());
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        add("file-length", name, format!("{lines} lines, at most {FILE_LINES_MAX}"));
    }
    let stem = name.rsplit('/').next().unwrap_or(name).trim_end_matches(".rs");
    if ATTICS.contains(&stem) {
        add("attic", name, format!("{stem} says nothing; a thing lives with its noun"));
    }
    for (function, length) in long_functions(text) {
        add(
            "function-length",
            &format!("{name} {function}"),
            format!("{length} lines, at most {FUNCTION_LINES_MAX}"),
        );
    }
    let room =
        name.strip_prefix("crates/").and_then(|rest| rest.split('/').next()).unwrap_or("xtask");
    let product = !name.contains("/tests/") && stem != "tests";
    for line in product_lines(text).filter(|_| product) {
        if CORES.contains(&room)
            && let Some(clock) = CLOCKS.iter().find(|clock| line.contains(**clock))
        {
            add("clock", name, format!("a core reads no clock and no environment: {clock}"));
        }
        if !UNSAFE_ROOMS.contains(&room) && room != "xtask" && has_word(line, "unsafe") {
            add("unsafe", name, "unsafe code belongs in netlink, runtime or disk".into());
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

/// The lines before the file's tests, without comments.
fn product_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

/// Functions over the limit with their lengths; rustfmt puts the closing brace below the `fn`.
fn long_functions(text: &str) -> Vec<(String, usize)> {
    let mut open: Option<(String, usize, String)> = None;
    let mut long = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some((name, start, end)) = &open {
            if line == end {
                let length = number - start + 1;
                if length > FUNCTION_LINES_MAX {
                    long.push((name.clone(), length));
                }
                open = None;
            }
        } else if let Some(name) = function_name(line) {
            let indent = &line[..line.len() - line.trim_start().len()];
            if !line.trim_end().ends_with('}') && !line.trim_end().ends_with(';') {
                open = Some((name, number, format!("{indent}}}")));
            }
        }
    }
    long
}

/// The name in a line that begins a function.
pub fn function_name(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    for word in words.by_ref() {
        match word {
            "fn" => break,
            "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"" => {}
            _ if word.starts_with("pub(") => {}
            _ => return None,
        }
    }
    let name: String =
        words.next()?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str, text: &str) -> Vec<&'static str> {
        check(name, text).into_iter().map(|fault| fault.rule).collect()
    }

    #[test]
    fn a_file_says_what_it_is_in_its_first_line() {
        assert_eq!(rules("crates/dns/src/lib.rs", "use x;\n"), ["first-line"]);
        assert_eq!(rules("crates/dns/src/lib.rs", "//! Names.\nuse x;\n"), Vec::<&str>::new());
    }

    #[test]
    fn a_core_that_reads_a_clock_is_found_but_not_in_its_tests() {
        let clock = "//! x\nfn f() { Instant::now(); }\n";
        assert_eq!(rules("crates/dns/src/lib.rs", clock), ["clock"]);
        assert_eq!(rules("crates/image/src/lib.rs", clock), Vec::<&str>::new());
        let tests = format!("//! x\n#[cfg(test)]\n{clock}");
        assert_eq!(rules("crates/dns/src/lib.rs", &tests), Vec::<&str>::new());
    }

    #[test]
    fn unsafe_outside_its_fence_is_found() {
        let text = "//! x\nfn f() { unsafe { g() } }\n";
        assert_eq!(rules("crates/image/src/a.rs", text), ["unsafe"]);
        assert_eq!(rules("crates/netlink/src/a.rs", text), Vec::<&str>::new());
    }

    #[test]
    fn a_function_of_71_lines_is_too_long() {
        let body = "    x();\n".repeat(69);
        assert_eq!(long_functions(&format!("fn f() {{\n{body}}}\n")), [("f".to_owned(), 71)]);
        let body = "    x();\n".repeat(68);
        assert_eq!(long_functions(&format!("fn f() {{\n{body}}}\n")), []);
    }
}
