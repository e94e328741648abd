use crate::suite;

#[test]
fn dropout_matches_its_reference_in_every_variant() {
    suite::check_family("dropout");
}

#[test]
fn dropout_gradients_match_central_differences() {
    suite::check_gradients("dropout");
}
