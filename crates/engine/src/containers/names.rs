//! Names: what one may be, and what a container without one gets.

use rand::Rng;

use crate::error::{Error, Result};

/// Docker's rule: two characters at least, the first a letter or digit.
pub(crate) fn check(name: &str) -> Result<()> {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = characters.clone().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if first && rest && characters.next().is_some() {
        return Ok(());
    }
    Err(Error::bad_parameter(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

/// A name for what has none, of which its owner knows no other.
pub fn generated() -> String {
    generate(&mut rand::rng(), 0)
}

/// `busy_lamarr`: the n-th try after some collisions gets a digit.
pub(crate) fn generate(dice: &mut impl Rng, attempt: usize) -> String {
    let adjective = ADJECTIVES[dice.random_range(0..ADJECTIVES.len())];
    let surname = SURNAMES[dice.random_range(0..SURNAMES.len())];
    match attempt {
        0..3 => format!("{adjective}_{surname}"),
        _ => format!("{adjective}_{surname}{}", dice.random_range(0..1_000)),
    }
}

const ADJECTIVES: &[&str] = &[
    "able", "airy", "alert", "ample", "apt", "balmy", "bold", "brave", "breezy", "bright", "brisk",
    "busy", "calm", "candid", "careful", "cheery", "civil", "clear", "clever", "cosy", "crisp",
    "curious", "daring", "deft", "eager", "early", "earnest", "easy", "fair", "fleet", "fluent",
    "fond", "frank", "free", "fresh", "gentle", "glad", "golden", "grand", "hardy", "hearty",
    "honest", "humming", "keen", "kind", "lasting", "lively", "loyal", "lucid", "mellow", "merry",
    "mild", "modest", "neat", "nimble", "noble", "open", "patient", "placid", "plucky", "polite",
    "proud", "prudent", "quick", "quiet", "ready", "robust", "rosy", "rustic", "sage", "serene",
    "sharp", "silent", "sincere", "smooth", "snug", "sober", "solid", "spry", "steady", "stout",
    "sturdy", "sunny", "supple", "sure", "swift", "tidy", "tranquil", "true", "trusty", "upbeat",
    "valiant", "vivid", "warm", "wise", "witty", "woven", "zesty",
];

const SURNAMES: &[&str] = &[
    "abel",
    "ampere",
    "anning",
    "avogadro",
    "banneker",
    "bernoulli",
    "bose",
    "boyle",
    "brahe",
    "butenandt",
    "cantor",
    "carver",
    "cavendish",
    "celsius",
    "cerf",
    "church",
    "clarke",
    "cori",
    "coulomb",
    "crick",
    "dalton",
    "debye",
    "descartes",
    "dirac",
    "doppler",
    "ekman",
    "euler",
    "fermat",
    "fourier",
    "fresnel",
    "frisch",
    "galois",
    "gibbs",
    "glidden",
    "graham",
    "haber",
    "hahn",
    "halley",
    "hardy",
    "henry",
    "herschel",
    "hertz",
    "hess",
    "hilbert",
    "hooke",
    "huber",
    "hubble",
    "humboldt",
    "huygens",
    "jansky",
    "joule",
    "karman",
    "kirchhoff",
    "knuth",
    "koch",
    "kovalevsky",
    "lagrange",
    "langstroth",
    "laplace",
    "leibniz",
    "lindauer",
    "linnaeus",
    "lister",
    "lorentz",
    "lyell",
    "mach",
    "markov",
    "maxwell",
    "mendel",
    "michelson",
    "minkowski",
    "napier",
    "nernst",
    "noyce",
    "ohm",
    "onnes",
    "oort",
    "oersted",
    "planck",
    "poisson",
    "prandtl",
    "raman",
    "ramsay",
    "rayleigh",
    "riemann",
    "roentgen",
    "rutherford",
    "sabin",
    "seeley",
    "shannon",
    "snell",
    "stokes",
    "sylvester",
    "thomson",
    "torricelli",
    "turing",
    "venn",
    "volta",
    "wallace",
    "watt",
    "weber",
    "wegener",
    "wien",
    "yalow",
    "zermelo",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_docker_s_names_are_names() {
        for good in ["ab", "a1", "0-_.x", "Web.1.abc"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "a b", "a/b", "äb", "a\n"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_generated_name_is_a_name() {
        let mut dice = rand::rng();
        for attempt in 0..200 {
            let name = generate(&mut dice, attempt);
            assert!(check(&name).is_ok(), "{name}");
        }
    }
}
