//! docs/compatibility.md names every endpoint: a route without a row fails here, and a row without its route.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const METHODS: [&str; 6] = ["get", "post", "put", "delete", "head", "any"];

/// One endpoint: the method in capitals, `ANY` for all, and the path with `{parameters}`.
type Endpoint = (String, String);

fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).expect("the crate's sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            // A file's tests are at its end, and their routes nobody can reach.
            found.push_str(text.split("#[cfg(test)]\nmod ").next().unwrap_or_default());
        }
    }
}

/// Every `.route("path", get(a).post(b))` of a text.
fn routes(text: &str) -> BTreeSet<Endpoint> {
    let mut found = BTreeSet::new();
    for call in text.split(".route(").skip(1) {
        let call = &call[..end_of_call(call)];
        let mut parts = call.splitn(3, '"');
        let (Some(_), Some(path), Some(methods)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let words = methods.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(');
        let names = words.filter_map(|word| word.split_once('(')).map(|parts| parts.0);
        for method in names.filter(|name| METHODS.contains(name)) {
            found.insert((method.to_uppercase(), path.to_owned()));
        }
    }
    found
}

/// Where the bracket closes that was open at the beginning.
fn end_of_call(text: &str) -> usize {
    let mut depth = 1;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The rows "| `GET /path` | answer | ..." of the page, with their second column.
fn rows(page: &str) -> Vec<(Endpoint, String)> {
    let mut found = Vec::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        // Other tables begin with a command or an option.
        let Some((endpoint, rest)) = line.split_once("` | ") else { continue };
        let Some((method, path)) = endpoint.split_once(" /") else { continue };
        let answer = rest.split(" |").next().unwrap_or_default().to_owned();
        found.push(((method.to_owned(), format!("/{path}")), answer));
    }
    found
}

/// The route that the router would choose: the one with the fewest parameters; a route for GET
/// answers HEAD as well.
fn route_of<'a>(routes: &'a BTreeSet<Endpoint>, row: &Endpoint) -> Option<&'a Endpoint> {
    let matching = routes.iter().filter(|(method, pattern)| {
        let head = row.0 == "HEAD" && method == "GET";
        (*method == row.0 || method == "ANY" || head) && matches(pattern, &row.1)
    });
    matching.min_by_key(|(method, pattern)| (pattern.matches('{').count(), *method != row.0))
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut wanted = pattern.split('/');
    let mut given = path.split('/');
    loop {
        match (wanted.next(), given.next()) {
            (Some(rest), Some(_)) if rest.starts_with("{*") => return true,
            (Some(one), Some(other)) if one == other || one.starts_with('{') => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[test]
fn the_table_and_the_router_agree() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&crate_folder.join("src"), &mut text);
    let routes = routes(&text);
    let page = fs::read_to_string(crate_folder.join("../../docs/compatibility.md"))
        .expect("docs/compatibility.md");
    let rows = rows(&page);
    let mut faults = Vec::new();
    let mut met = BTreeSet::new();
    for (row, answer) in &rows {
        let route = route_of(&routes, row);
        let expected = match answer.as_str() {
            "yes" | "partly" | "refused" => true,
            "absent" => false,
            other => panic!("{row:?}: {other:?} is not yes, partly, refused or absent"),
        };
        if route.is_some() != expected {
            faults.push(format!("{row:?} is called {answer}, and its route is {route:?}"));
        }
        met.extend(route.cloned());
    }
    faults.extend(routes.difference(&met).map(|route| format!("{route:?} has no row")));
    assert!(rows.len() > 100, "only {} rows were found", rows.len());
    assert!(faults.is_empty(), "docs/compatibility.md:\n{}", faults.join("\n"));
}

#[test]
fn routes_and_rows_are_read_as_they_are_written() {
    let text =
        "Router::new().route(\"/a\", get(list).post(f(x)))\n.route(\n\"/a/{*rest}\",\nany(refuse))";
    let found = routes(text);
    let endpoint = |method: &str, path: &str| (method.to_owned(), path.to_owned());
    let expected = [endpoint("ANY", "/a/{*rest}"), endpoint("GET", "/a"), endpoint("POST", "/a")];
    assert_eq!(found, BTreeSet::from(expected));
    assert_eq!(
        rows("| `GET /a` | yes | `x` |\n| `x` | y |"),
        [(endpoint("GET", "/a"), "yes".into())]
    );
    assert!(route_of(&found, &endpoint("PUT", "/a/b/c")).is_some());
    assert!(route_of(&found, &endpoint("PUT", "/a")).is_none());
}
