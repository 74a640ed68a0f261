package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/pgtest"
	"postern/relay/seal"
)

// TestKeyCommands is the life of a sealing key at the shell of one machine; relay/keyring has it
// over several nodes.
func TestKeyCommands(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	path := filepath.Join(t.TempDir(), "secret.key")
	environ := []string{"POSTERN_DATABASE_URL=" + db.URL, "POSTERN_SECRET_KEY_FILE=" + path}
	postern := func(want int, args ...string) string {
		t.Helper()
		var out, errs strings.Builder
		if status := run(t.Context(), args, environ, strings.NewReader("a good secret\n"), &out, &errs); status != want {
			t.Fatalf("%q: status %d, want %d: %s%s", args, status, want, &out, &errs)
		}
		return out.String() + errs.String()
	}
	says := func(said string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(said, w) {
				t.Errorf("does not say %q:\n%s", w, said)
			}
		}
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	says(postern(exitFailed, "key", "rotate"), "secret.key does not exist: copy it from another node")
	postern(exitDone, "key", "list")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a key was made: %v", err)
	}
	add := func(name string) {
		t.Helper()
		postern(exitDone, "upstream", "add", name, "--host", "127.0.0.1:1", "--username", "u", "--password-stdin")
	}
	add("first")
	// A process that was killed before its rename left this; the file itself is whole.
	if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	says(postern(exitDone, "key", "rotate"), "added key ", "nothing is sealed with it yet", "copy secret_key_file to the other nodes")
	says(postern(exitDone, "key", "rotate"), "was added before and is not in use")
	if _, err := os.Stat(path + ".new"); !os.IsNotExist(err) {
		t.Errorf("%s.new: %v", path, err)
	}
	sealer, err := seal.LoadOrCreate(path)
	if err != nil || len(sealer.Keys()) != 2 {
		t.Fatalf("%v, %v", sealer, err)
	}
	before, after := sealer.Keys()[0], sealer.Keys()[1]
	exec(`with n as (insert into node (name, expires_at) values ('other', now()) returning epoch)
		insert into sealing_ring (epoch, node, keys) select epoch, 'other', array['` + before + `'] from n`)
	says(postern(exitFailed, "key", "use", after), "nodes without this key: other")
	says(postern(exitDone, "key", "use", after, "--force"), "key "+after+" is now current; left to re-seal: 1 value", "'postern key remove' with the former key, from 20")
	add("second") // with the new key
	says(postern(exitDone, "key", "list"), before+"  old      -", after+"  current  20")
	says(postern(exitDone, "key", "list", "--json"), `"id": "`+after+`"`, `"state": "current"`, `"values": 1`, `"other"`)
	says(postern(exitFailed, "key", "remove", after), "is in use")
	says(postern(exitFailed, "key", "remove", before), "key "+before+" still seals values: 1;")
	postern(exitDone, "upstream", "remove", "first")
	says(postern(exitFailed, "key", "remove", before), "less than 1h ago")
	exec(`update sealing_key set since = since - interval '2 hours'`)
	says(postern(exitFailed, "key", "remove", before), "nodes without the current key: other")
	exec(`update node set reaped_at = now()`)
	says(postern(exitDone, "key", "remove", before), "removed key "+before, "copy secret_key_file", "still have it")
	says(postern(exitFailed, "key", "use", before), "has no key")
	says(postern(exitDone, "audit"), "key rotate", "key use", "key remove")

	// No file: the list says what there is to copy.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	says(postern(exitDone, "key", "list"), after+"  missing  20")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a key was made: %v", err)
	}
	// Another file: nothing is sealed that the nodes could not open.
	if err := os.WriteFile(path, make([]byte, seal.KeySize), 0o600); err != nil {
		t.Fatal(err)
	}
	said := postern(exitFailed, "upstream", "add", "third", "--host", "127.0.0.1:1", "--username", "u", "--password-stdin")
	says(said, "key "+after+" is in use, which "+path+" does not have: copy the file of a node that has it")
	says(postern(exitFailed, "key", "rotate"), "does not have")

	// No node has the key any more.
	other, err := seal.New(make([]byte, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	use := []string{"key", "use", other.Current()}
	says(postern(exitFailed, use...), "if no node has it any more, 'postern key use "+other.Current()+" --force'")
	says(postern(exitFailed, "upstream", "set", "second", "--password-stdin"), "--force'")
	says(postern(exitDone, append(use, "--force")...), "key "+other.Current()+" is now current")
	postern(exitDone, "upstream", "set", "second", "--password-stdin")
	add("third")
	says(postern(exitDone, "key", "list", "--json"), `"values": 2`)
	says(postern(exitDone, "key", "rotate"), "added key ")
}

// A machine that may not write the file says so, and leaves the audit alone.
func TestKeyRotateCannotWrite(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "secret.key")
	if _, err := seal.LoadOrCreate(path); err != nil {
		t.Fatal(err)
	}
	// A folder that cannot be replaced stands where the new file is written.
	if err := os.MkdirAll(filepath.Join(path+".new", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	status := run(t.Context(), []string{"key", "rotate"}, []string{"POSTERN_DATABASE_URL=" + db.URL, "POSTERN_SECRET_KEY_FILE=" + path}, nil, &errs, &errs)
	if status != exitFailed || !strings.Contains(errs.String(), "write key: ") {
		t.Errorf("%d, %s", status, &errs)
	}
	var deeds int
	if err := db.Pool.QueryRow(t.Context(), `select count(*) from audit`).Scan(&deeds); err != nil || deeds != 0 {
		t.Errorf("%d deeds, %v", deeds, err)
	}
	if key, err := os.ReadFile(path); err != nil || len(key) != seal.KeySize {
		t.Errorf("the key file has %d octets, %v", len(key), err)
	}
}
