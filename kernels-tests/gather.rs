use crate::suite;

#[test]
fn gather_matches_its_reference_in_every_variant() {
    suite::check_family("gather");
}

#[test]
fn gather_gradients_match_central_differences() {
    suite::check_gradients("gather");
}
