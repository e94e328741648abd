use crate::suite;

#[test]
fn attention_matches_its_reference_in_every_variant() {
    suite::check_family("attention");
}

#[test]
fn attention_gradients_match_central_differences() {
    suite::check_gradients("attention");
}
