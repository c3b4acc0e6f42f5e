package export

// Edit says how the tags of an Observer's spans are changed before they leave:
// which are redacted and which renamed.
type Edit struct{}
