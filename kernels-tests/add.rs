use crate::suite;

#[test]
fn add_matches_its_reference_in_every_variant() {
    suite::check_family("add");
}

#[test]
fn add_gradients_match_central_differences() {
    suite::check_gradients("add");
}
