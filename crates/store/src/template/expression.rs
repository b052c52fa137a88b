//! What stands between `{{` and `}}`: fields, words in quotes, numbers, pipelines and functions.
//!
//! Go's template language without its blocks (`if`, `range`, `with`) and variables.

use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(Vec<u8>),
    Number(i64),
    Bool(bool),
    Map(BTreeMap<String, String>),
    Record(Vec<(&'static str, Value)>),
}

impl Value {
    pub fn text(text: impl Into<String>) -> Self {
        Value::Text(text.into().into_bytes())
    }

    /// As Go prints it.
    pub fn print(&self) -> Vec<u8> {
        match self {
            Value::Text(text) => text.clone(),
            Value::Number(number) => number.to_string().into_bytes(),
            Value::Bool(truth) => truth.to_string().into_bytes(),
            Value::Map(map) => {
                let pairs = map.iter().map(|(key, value)| format!("{key}:{value}"));
                format!("map[{}]", pairs.collect::<Vec<_>>().join(" ")).into_bytes()
            }
            Value::Record(fields) => {
                let fields = fields.iter().map(|(_, value)| value.print());
                [b"{", fields.collect::<Vec<_>>().join(&b' ').as_slice(), b"}"].concat()
            }
        }
    }

    fn field(&self, name: &str) -> Option<&Value> {
        let Value::Record(fields) = self else { return None };
        fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn is_true(&self) -> bool {
        match self {
            Value::Text(text) => !text.is_empty(),
            Value::Number(number) => *number != 0,
            Value::Bool(truth) => *truth,
            Value::Map(map) => !map.is_empty(),
            Value::Record(_) => true,
        }
    }
}

/// Functions beyond the ones that every template has; `None` for those that it has not.
pub type More<'a> = dyn Fn(&str, &[Value]) -> Option<Value> + 'a;

/// `None` when it is no expression, or names what is not known.
pub fn evaluate(action: &str, root: &Value, more: &More<'_>) -> Option<Value> {
    let tokens = tokens(action)?;
    let mut reader = Reader { tokens: &tokens, root, more };
    let value = reader.pipeline()?;
    reader.tokens.is_empty().then_some(value)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Field(String),
    Word(String),
    Constant(Value),
    Pipe,
    Open,
    Close,
}

fn tokens(action: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '"' => quoted(rest)?,
            '`' => {
                let end = rest[1..].find('`')? + 1;
                (Token::Constant(Value::text(&rest[1..end])), end + 1)
            }
            _ => {
                let ends = |c: char| c.is_whitespace() || "|()\"`".contains(c);
                let length = rest.find(ends).unwrap_or(rest.len());
                (word(&rest[..length])?, length)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Some(tokens)
}

fn word(word: &str) -> Option<Token> {
    if word.starts_with('.') {
        return Some(Token::Field(word.to_owned()));
    }
    Some(match word {
        "true" => Token::Constant(Value::Bool(true)),
        "false" => Token::Constant(Value::Bool(false)),
        _ if word.starts_with(|c: char| c.is_ascii_alphabetic()) => Token::Word(word.to_owned()),
        _ => Token::Constant(Value::Number(word.parse().ok()?)),
    })
}

fn quoted(text: &str) -> Option<(Token, usize)> {
    let mut held = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((Token::Constant(Value::text(held)), at + 1)),
            '\\' => held.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                same @ ('"' | '\\') => same,
                _ => return None,
            }),
            other => held.push(other),
        }
    }
    None
}

struct Reader<'a> {
    tokens: &'a [Token],
    root: &'a Value,
    more: &'a More<'a>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }

    /// Each command's value is the last argument of the next.
    fn pipeline(&mut self) -> Option<Value> {
        let mut value = self.command(None)?;
        while self.tokens.first() == Some(&Token::Pipe) {
            self.next();
            value = self.command(Some(value))?;
        }
        Some(value)
    }

    fn command(&mut self, piped: Option<Value>) -> Option<Value> {
        let Some(Token::Word(function)) = self.tokens.first().cloned() else {
            // A value takes no arguments.
            return if piped.is_none() { self.operand() } else { None };
        };
        self.next();
        let mut arguments = Vec::new();
        while !matches!(self.tokens.first(), None | Some(Token::Pipe | Token::Close)) {
            arguments.push(self.operand()?);
        }
        arguments.extend(piped);
        call(&function, &arguments).or_else(|| (self.more)(&function, &arguments))
    }

    fn operand(&mut self) -> Option<Value> {
        match self.next()? {
            Token::Constant(value) => Some(value),
            Token::Field(path) if path == "." => Some(self.root.clone()),
            Token::Field(path) => {
                let mut names = path.split('.').skip(1);
                names.try_fold(self.root, |value, name| value.field(name)).cloned()
            }
            Token::Word(function) => call(&function, &[]).or_else(|| (self.more)(&function, &[])),
            Token::Open => {
                let value = self.pipeline()?;
                (self.next()? == Token::Close).then_some(value)
            }
            Token::Pipe | Token::Close => None,
        }
    }
}

fn call(function: &str, arguments: &[Value]) -> Option<Value> {
    match (function, arguments) {
        ("join", [Value::Text(between), parts @ ..]) => {
            let is_text = |part: &Value| matches!(part, Value::Text(_));
            let printed: Vec<Vec<u8>> = parts.iter().map(Value::print).collect();
            parts.iter().all(is_text).then(|| Value::Text(printed.join(between.as_slice())))
        }
        ("index", [value]) => Some(value.clone()),
        // As in Go a missing key is empty.
        ("index", [Value::Map(map), Value::Text(key)]) => {
            let key = std::str::from_utf8(key).ok()?;
            Some(Value::text(map.get(key).cloned().unwrap_or_default()))
        }
        ("index", [Value::Text(text), Value::Number(at)]) => {
            let letter = text.get(usize::try_from(*at).ok()?)?;
            Some(Value::Number(i64::from(*letter)))
        }
        ("len", [Value::Text(text)]) => i64::try_from(text.len()).ok().map(Value::Number),
        ("len", [Value::Map(map)]) => i64::try_from(map.len()).ok().map(Value::Number),
        ("print", values) => Some(Value::Text(print(values))),
        ("println", values) => {
            let printed: Vec<Vec<u8>> = values.iter().map(Value::print).collect();
            Some(Value::Text([printed.join(&b' '), b"\n".to_vec()].concat()))
        }
        ("printf", [Value::Text(format), values @ ..]) => printf(format, values),
        ("not", [value]) => Some(Value::Bool(!value.is_true())),
        ("and", [.., last]) => {
            Some(arguments.iter().find(|value| !value.is_true()).unwrap_or(last).clone())
        }
        ("or", [.., last]) => {
            Some(arguments.iter().find(|value| value.is_true()).unwrap_or(last).clone())
        }
        ("eq", [one, others @ ..]) if !others.is_empty() => {
            let like = std::mem::discriminant(one);
            let same = others.iter().all(|other| std::mem::discriminant(other) == like);
            same.then(|| Value::Bool(others.contains(one)))
        }
        ("ne", [one, other]) if std::mem::discriminant(one) == std::mem::discriminant(other) => {
            Some(Value::Bool(one != other))
        }
        _ => None,
    }
}

/// Go puts a space between two values that are both no text.
fn print(values: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, value) in values.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        if at > 0 && !is_text(value) && !is_text(&values[at - 1]) {
            out.push(b' ');
        }
        out.extend(value.print());
    }
    out
}

/// The verbs s, v, d and q, without widths.
fn printf(format: &[u8], values: &[Value]) -> Option<Value> {
    let mut out = Vec::new();
    let mut values = values.iter();
    let mut letters = format.iter();
    while let Some(letter) = letters.next() {
        if *letter != b'%' {
            out.push(*letter);
            continue;
        }
        match (letters.next()?, values.as_slice().first()) {
            (b'%', _) => {
                out.push(b'%');
                continue;
            }
            (b's', Some(value @ Value::Text(_))) | (b'v', Some(value)) => out.extend(value.print()),
            (b'd', Some(value @ Value::Number(_))) => out.extend(value.print()),
            (b'q', Some(Value::Text(text))) => {
                out.extend(format!("{:?}", std::str::from_utf8(text).ok()?).into_bytes());
            }
            _ => return None,
        }
        values.next();
    }
    values.as_slice().is_empty().then_some(Value::Text(out))
}
