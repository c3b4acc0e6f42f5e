//go:build linux

package guestio

import "strconv"

// Numbers of disks in a guest, as the toolstack gives them to devid: Xen's own, those
// that Linux had for SCSI disks and floppies, and for IDE disks.
const (
	devidExtended = 1 << 28 // Xen's: disk << 8 | partition
	majorXen      = 202
	majorSCSI     = 8
	majorFloppy   = 203
)

var majorsIDE = [...]uint32{3, 22, 33, 34, 56, 57, 88, 89, 90, 91}

// deviceName returns the name that the guest's disk has by its number, "" of a number
// that the toolstack does not give.
func deviceName(devid uint32) string {
	if devid >= devidExtended<<1 {
		return ""
	}
	if devid&devidExtended != 0 {
		return diskName("xvd", devid>>8&(1<<20-1), devid&0xff)
	}
	major, minor := devid>>8, devid&0xff
	switch major {
	case majorXen:
		return diskName("xvd", minor>>4, minor&0xf)
	case majorSCSI:
		return diskName("sd", minor>>4, minor&0xf)
	case majorFloppy:
		return diskName("fd", minor>>4, minor&0xf)
	}
	for i, m := range majorsIDE {
		if major == m {
			return diskName("xvd", uint32(2*i)+minor>>6, minor&0x3f)
		}
	}
	return ""
}

// diskName counts a, …, z, aa, …
func diskName(prefix string, disk, partition uint32) string {
	var letters []byte
	for n := int64(disk); n >= 0; n = n/26 - 1 {
		letters = append([]byte{byte('a' + n%26)}, letters...)
	}
	name := prefix + string(letters)
	if partition > 0 {
		name += strconv.FormatUint(uint64(partition), 10)
	}
	return name
}
