package archive

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// MaxName bounds a name, in bytes.
const MaxName = 1024

// ReservedPrefix begins the names that the archive keeps for itself.
const ReservedPrefix = ".bonafide/"

// Name is what a user binds to a content, once and for ever: UTF-8, 1 to
// MaxName bytes, segments separated by slashes.
type Name string

// NormalizeName returns s in Unicode normalisation form C, and whether that
// changed it. Clients normalise; replicas do not, since later versions of
// Unicode may normalise differently.
func NormalizeName(s string) (Name, bool) {
	n := norm.NFC.String(s)
	return Name(n), n != s
}

// Check returns an ErrName that says why no archive takes n, or nil. It
// depends on no version of Unicode.
func (n Name) Check() error {
	if err := checkText(string(n)); err != nil {
		return err
	}
	for seg := range strings.SplitSeq(string(n), "/") {
		switch seg {
		case "":
			return fmt.Errorf("%w: empty segment, or a slash at its start or end", ErrName)
		case ".", "..":
			return fmt.Errorf("%w: segment %q", ErrName, seg)
		}
	}
	if strings.HasPrefix(string(n), ReservedPrefix) {
		return fmt.Errorf("%w: names under %s are reserved", ErrName, ReservedPrefix)
	}
	return nil
}

// CheckPrefix returns an ErrName if p can begin no name. The empty prefix
// begins all of them.
func CheckPrefix(p string) error {
	if p == "" {
		return nil
	}
	return checkText(p)
}

func checkText(s string) error {
	if len(s) == 0 || len(s) > MaxName {
		return fmt.Errorf("%w: %d bytes, want 1 to %d", ErrName, len(s), MaxName)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: not UTF-8", ErrName)
	}
	for _, r := range s {
		if forbidden(r) {
			return fmt.Errorf("%w: character %U", ErrName, r)
		}
	}
	return nil
}

// forbidden reports control characters (C0, DEL, C1) and those that reorder
// the text around them on a terminal (bidirectional embeddings, overrides and
// isolates).
func forbidden(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r <= 0x9f:
		return true
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	}
	return false
}
