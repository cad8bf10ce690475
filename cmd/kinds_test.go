package cmd

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestMessagesBeginWithTheirKind reads the source of all messages, a replica's events
// among them: whatever struct has a kind has it first, where typed looks for it, and
// each kind that has a type of its own is some message's.
func TestMessagesBeginWithTheirKind(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	files = slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	messages, literals := 0, make(map[string]int)
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.StructType:
			before := ""
			for _, f := range n.Fields.List {
				name := jsonName(t, f)
				if name == "kind" {
					messages++
					if before != "" {
						t.Errorf("a message has %s before its kind", before)
					}
				}
				before = cmp.Or(before, name)
			}
		case *ast.ValueSpec:
			return n.Names[0].Name != "messageTypes"
		case *ast.BasicLit:
			if s, err := strconv.Unquote(n.Value); err == nil {
				literals[s]++
			}
		}
		return true
	}
	for _, file := range append(files, "../archive/replica/event.go") {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, look)
	}
	if messages < 20 {
		t.Errorf("%d messages found", messages)
	}
	for kind := range messageTypes {
		if literals[kind] == 0 {
			t.Errorf("no message is of kind %q", kind)
		}
	}
}

// jsonName is the name that a field has in JSON; empty, it has none.
func jsonName(t *testing.T, f *ast.Field) (name string) {
	t.Helper()
	if len(f.Names) > 0 && f.Names[0].IsExported() {
		name = f.Names[0].Name
	}
	if f.Tag == nil {
		return name
	}
	tag, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		t.Fatal(err)
	}
	tagged, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
	return cmp.Or(strings.TrimPrefix(tagged, "-"), name)
}
