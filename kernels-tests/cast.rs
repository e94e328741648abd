use crate::suite;

#[test]
fn cast_matches_its_reference_in_every_variant() {
    suite::check_family("cast");
}

#[test]
fn cast_gradients_match_central_differences() {
    suite::check_gradients("cast");
}
