package archive

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// EncodeJSON returns the one encoding of v on the wire: compact, fields in the
// order of SPEC.md, no HTML escapes.
func EncodeJSON(v any) ([]byte, error) { return encodeJSON(v, "") }

// DecodeJSON parses b into v and refuses it unless it is what EncodeJSON
// returns for v: no unknown, repeated or differently cased keys, no spaces, no
// trailing bytes.
func DecodeJSON(b []byte, v any) error { return decodeJSON(b, v, "") }

// encodeText is EncodeJSON for files that people read: indented by two spaces,
// with a final newline.
func encodeText(v any) ([]byte, error) {
	b, err := encodeJSON(v, "  ")
	return append(b, '\n'), err
}

func decodeText(b []byte, v any) error {
	body, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok {
		return fmt.Errorf("%w: no final newline", ErrFormat)
	}
	return decodeJSON(body, v, "  ")
}

func encodeJSON(v any, indent string) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func decodeJSON(b []byte, v any, indent string) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %v", ErrFormat, err)
	}
	again, err := encodeJSON(v, indent)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrFormat, err)
	}
	if !bytes.Equal(again, b) {
		return fmt.Errorf("%w: JSON that is not in its one form", ErrFormat)
	}
	return nil
}
