// Package packaging builds the packages: RPMs for the dom0 of XenServer 8 and XCP-ng
// 8 (CentOS 7 userland) and for hosts based on EL10, and a Debian package. It needs
// neither root nor rpmbuild; nfpm, a Go program, writes them.
//
// Equal sources give equal packages, byte for byte: all times in them are that of the
// commit, or SOURCE_DATE_EPOCH.
package packaging
