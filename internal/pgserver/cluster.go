package pgserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"postern/internal/owned"
)

// settingsName is the file of this package's settings inside the cluster.
// Being included from postgresql.conf, it gives way to ALTER SYSTEM.
const settingsName = "postern.conf"

// clusterVersion is the major release that made the cluster, 0 when there is
// none yet.
func clusterVersion(folder *os.Root, owner account) int {
	version, err := strconv.Atoi(strings.TrimSpace(readNote(folder, "data/PG_VERSION", owner)))
	if err != nil {
		return 0
	}
	return version
}

// initCluster makes the cluster when there is none. It is made aside and then
// renamed, so that an interrupted one is never taken for whole.
func (s *Server) initCluster(ctx context.Context, programs programs) error {
	if info, err := s.folder.Lstat("data"); err == nil && !info.IsDir() {
		return fmt.Errorf("%s: not a folder", s.data())
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	const unfinished = "data.new"
	if err := s.folder.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := s.owner.folder(s.folder, unfinished); err != nil {
		return err
	}
	if err := runInitdb(ctx, programs, s.config, s.owner, filepath.Join(s.config.Dir, unfinished)); err != nil {
		return err
	}
	if err := includeSettings(s.folder, unfinished, s.owner); err != nil {
		return fmt.Errorf("configure the new cluster: %w", err)
	}
	if err := s.folder.Rename(unfinished, "data"); err != nil {
		return err
	}
	return syncFolder(s.folder)
}

// runInitdb makes a cluster in UTF-8 whose order of text is that of its bytes,
// the same everywhere. The socket is in a folder that nobody else can enter, so
// it asks for no password.
func runInitdb(ctx context.Context, programs programs, config Config, owner account, data string) error {
	args := []string{"-D", data, "-U", role, "--auth=trust", "--encoding=UTF8", "--locale=C"}
	if config.Unsafe {
		args = append(args, "--no-sync", "--wal-segsize=1")
	}
	cmd := exec.CommandContext(ctx, programs.initdb, args...)
	cmd.Env = environment()
	cmd.Dir = config.Dir
	cmd.SysProcAttr = owner.attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", programs.initdb, err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

func includeSettings(folder *os.Root, data string, owner account) error {
	main, err := owned.OpenFile(folder, data+"/postgresql.conf", os.O_WRONLY|os.O_APPEND, 0, owner.uid)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(main, "\ninclude '%s'\n", settingsName)
	return errors.Join(err, main.Sync(), main.Close())
}

func syncFolder(folder *os.Root) error {
	dir, err := folder.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// defaults suit a small server whose work is a mail queue: short transactions,
// many commits, rows that live for a moment. docs/postgres.md says why.
func defaults() map[string]string {
	return map[string]string{
		"listen_addresses":                "", // tests of failovers listen on loopback
		"max_connections":                 "100",
		"shared_buffers":                  "128MB",
		"wal_buffers":                     "64MB",
		"wal_compression":                 "off",
		"min_wal_size":                    "1GB",
		"max_wal_size":                    "1GB",
		"checkpoint_timeout":              "15min",
		"autovacuum_naptime":              "1s",
		"jit":                             "off",
		"max_parallel_workers_per_gather": "0",
		"fsync":                           "on",
		"full_page_writes":                "on",
		"synchronous_commit":              "on",
		"log_line_prefix":                 "%m [%p] ",
		"log_checkpoints":                 "off",
		"log_parameter_max_length":        "0", // mail and hashes, should somebody log statements
		"log_timezone":                    "UTC",
		"timezone":                        "UTC",
	}
}

// unsafeDefaults are on top of defaults for data that nobody will miss.
func unsafeDefaults() map[string]string {
	return map[string]string{
		"fsync":              "off",
		"full_page_writes":   "off",
		"synchronous_commit": "off",
		"wal_level":          "minimal",
		"max_wal_senders":    "0",
		"shared_buffers":     "64MB",
		"wal_buffers":        "4MB",
		"min_wal_size":       "80MB",
		"max_wal_size":       "2GB",
		"autovacuum_naptime": "10s", // tests have many databases
	}
}

// writeSettings writes the settings that this start of the server has. The file lies in
// the folder of the server's user, who can put links there: none is followed.
func (s *Server) writeSettings() error {
	settings := defaults()
	if s.config.Unsafe {
		maps.Copy(settings, unsafeDefaults())
	}
	maps.Copy(settings, s.config.Settings)
	settings["unix_socket_directories"] = s.socket.dir
	settings["unix_socket_permissions"] = "0700"
	settings["logging_collector"] = "off"

	var text strings.Builder
	text.WriteString("# Written at each start. Use ALTER SYSTEM to change a setting.\n")
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := settings[name]
		if strings.ContainsAny(name+value, "\r\n") {
			return fmt.Errorf("setting %q: a value is one line", name)
		}
		fmt.Fprintf(&text, "%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''"))
	}
	return owned.Replace(s.folder, "data/"+settingsName, []byte(text.String()), s.owner.give)
}

// environment keeps the caller's PG* variables and locale from the server.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}
