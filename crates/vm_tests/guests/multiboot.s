# A multiboot kernel that reports what it was given, one line a fact, on COM1, and leaves through the debug-exit port.
# Built by the test with `as --32` and `ld -m elf_i386 -Ttext=0x100000`.
    .intel_syntax noprefix
    .equ HEADER_MAGIC, 0x1badb002
    # Modules on page boundaries, memory information.
    .equ HEADER_FLAGS, 0x3
    .equ COM1, 0x3f8
    .equ DEBUG_EXIT, 0xf4

    .text
    .align 4
header:
    .long HEADER_MAGIC
    .long HEADER_FLAGS
    .long -(HEADER_MAGIC + HEADER_FLAGS)

    .globl _start
_start:
    mov esp, offset stack_end
    mov esi, ebx
    push eax
    mov edi, offset text_magic
    pop eax
    call fact
    # The state that the specification promises: protection on, paging off, interrupts off, A20 on.
    mov eax, cr0
    mov edi, offset text_cr0
    call fact
    pushfd
    pop eax
    mov edi, offset text_eflags
    call fact
    mov dword ptr [0x300000], 0x11111111
    mov dword ptr [0x200000], 0x22222222
    mov eax, [0x300000]
    mov edi, offset text_a20
    call fact
    mov eax, [bss_word]
    mov edi, offset text_bss
    call fact
    mov eax, [esi]
    mov edi, offset text_flags
    call fact
    mov eax, [esi + 4]
    mov edi, offset text_lower
    call fact
    mov eax, [esi + 8]
    mov edi, offset text_upper
    call fact
    mov edi, offset text_line
    mov ebp, [esi + 16]
    call text_fact
    mov eax, [esi + 20]
    mov edi, offset text_modules
    call fact
    cmp dword ptr [esi + 20], 0
    je memory_map
    mov ebx, [esi + 24]
    mov eax, [ebx]
    mov edi, offset text_module_start
    call fact
    mov eax, [ebx + 4]
    sub eax, [ebx]
    mov edi, offset text_module_len
    call fact
    mov edi, offset text_module_line
    mov ebp, [ebx + 8]
    call text_fact
    # The module's content: the sum of its bytes.
    mov ecx, [ebx]
    xor eax, eax
1:  cmp ecx, [ebx + 4]
    jae 2f
    movzx edx, byte ptr [ecx]
    add eax, edx
    inc ecx
    jmp 1b
2:  mov edi, offset text_module_sum
    call fact

memory_map:
    mov ebx, [esi + 48]
    mov ecx, ebx
    add ecx, [esi + 44]
3:  cmp ebx, ecx
    jae 4f
    mov edi, offset text_range
    call puts
    mov eax, [ebx + 8]
    call puthex
    mov eax, [ebx + 4]
    call puthex
    call space
    mov eax, [ebx + 16]
    call puthex
    mov eax, [ebx + 12]
    call puthex
    call space
    mov eax, [ebx + 20]
    call puthex
    call newline
    add ebx, [ebx]
    add ebx, 4
    jmp 3b
4:  mov edi, offset text_loader
    mov ebp, [esi + 64]
    call text_fact
    mov edi, offset text_end
    call puts
    call newline
    mov eax, 21
    mov dx, DEBUG_EXIT
    out dx, eax
5:  hlt
    jmp 5b

# Prints the name at EDI and the number EAX.
fact:
    push eax
    call puts
    pop eax
    call puthex
newline:
    mov al, 10
    jmp putc
space:
    mov al, 32
    jmp putc

# Prints the name at EDI and the text at EBP.
text_fact:
    call puts
    mov edi, ebp
    call puts
    jmp newline

# Prints the text at EDI.
puts:
    mov al, [edi]
    test al, al
    jz 6f
    call putc
    inc edi
    jmp puts
6:  ret

# Prints EAX in eight digits.
puthex:
    push ecx
    push ebx
    mov ebx, eax
    mov ecx, 8
7:  rol ebx, 4
    mov eax, ebx
    and eax, 15
    mov al, [digits + eax]
    call putc
    loop 7b
    pop ebx
    pop ecx
    ret

# Sends AL when the transmitter is empty.
putc:
    push edx
    push eax
    mov dx, COM1 + 5
8:  in al, dx
    test al, 0x20
    jz 8b
    pop eax
    mov dx, COM1
    out dx, al
    pop edx
    ret

    .data
digits: .ascii "0123456789abcdef"
text_magic: .asciz "magic "
text_cr0: .asciz "cr0 "
text_eflags: .asciz "eflags "
text_a20: .asciz "a20 "
text_bss: .asciz "bss "
text_flags: .asciz "flags "
text_lower: .asciz "mem_lower "
text_upper: .asciz "mem_upper "
text_line: .asciz "cmdline "
text_modules: .asciz "mods_count "
text_module_start: .asciz "mod_start "
text_module_len: .asciz "mod_len "
text_module_line: .asciz "mod_string "
text_module_sum: .asciz "mod_sum "
text_range: .asciz "range "
text_loader: .asciz "boot_loader_name "
text_end: .asciz "MULTIBOOT-OK"

    .bss
bss_word: .space 4
    .align 16
    .space 4096
stack_end:
