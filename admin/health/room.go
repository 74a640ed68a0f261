package health

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"postern/internal/units"
)

// The kinds of what is wrong with the folder for temporary files, and with the disk of
// the database.
var (
	spoolOK       = Kind{"spool.ok", OK, "", ""}
	spoolUnusable = Kind{"spool.unusable", Failed, "Temporary files cannot be written, so no message over 1 MiB is accepted.", "create spool_dir, and let the server's user write to it"}
	spoolFull     = Kind{"spool.full", Failed, "Temporary files have less room than the largest message needs.", "free room, or move spool_dir to a larger file system"}
	spoolSmall    = Kind{"spool.small", Warning, "Temporary files have less room than spool, or than ten of the largest messages need.",
		"free room, move spool_dir to a larger file system, or lower spool"}

	DiskFull = Kind{"db.full", Failed, "The database's disk is or was full (a private one's: nearly), so no mail is accepted.",
		"free room, or enlarge the disk; running nodes find it within a minute"}
)

// SpoolKinds are those of Spool.
func SpoolKinds() []Kind { return []Kind{spoolOK, spoolUnusable, spoolFull, spoolSmall} }

// Spool judges the room in a folder for temporary files, of which the largest is a message
// of so many octets. The configuration promises room for all of them; 0: that is not asked.
func Spool(dir string, message, promised int64) Finding {
	const subject = "spool"
	free, err := FreeSpace(dir)
	if err == nil {
		err = unix.Access(dir, unix.W_OK|unix.X_OK)
	}
	room := units.RoughOctets(free) + " free in " + dir
	switch {
	case err != nil:
		return spoolUnusable.Found(subject, "%s: %v", dir, err)
	case free < message:
		return spoolFull.Found(subject, "%s, less than one message: a message may have %s", room, units.FormatOctets(message))
	case free < promised:
		return spoolSmall.Found(subject, "%s, and spool is %s", room, units.FormatOctets(promised))
	case free/10 < message:
		return spoolSmall.Found(subject, "%s, and a message may have %s", room, units.FormatOctets(message))
	}
	return spoolOK.Found(subject, "%s", room)
}

// FreeSpace returns the octets that others than root may still write into a folder.
func FreeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for room: %w", err)
	}
	// The types differ between machines, and some file systems have no end.
	if free := float64(st.Bavail) * float64(st.Bsize); free < math.MaxInt64 {
		return int64(free), nil
	}
	return math.MaxInt64, nil
}
