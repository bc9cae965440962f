#!/usr/bin/env node
console.error('asa: no command yet');
